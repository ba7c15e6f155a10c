"""What a test raises in place of a signal that kills a process."""


class Killed(BaseException):
    """Nothing handles it on its way, as it is no `Exception`."""
