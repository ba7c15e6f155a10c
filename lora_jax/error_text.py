"""What an error says, in one line."""


def said(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, 1,000 characters at most."""
    name, message = type(error).__name__, said(error)
    return name if message == name else f"{name}: {message}"[:1000]
