"""Say in one line that pictures need matplotlib, where it is not installed."""

import importlib.util


def require_matplotlib() -> None:
    """Raise a ValueError with the command that installs matplotlib, if it is missing.

    What draws is imported after this call, where a picture is asked for: matplotlib is optional,
    and slow to import.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('pictures need matplotlib; run: pip install "lora-jax[plots]"')
