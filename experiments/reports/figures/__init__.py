"""Figures of many runs.

`scores` draws scores by parameters, scores by learning rate, and training curves. `forest`,
`labelled_points` and `curves` draw the figures of reports from plain numbers. `adapter_distance`
draws how far adapters are apart. `style` has colours and lines, and writes figures.
"""

import importlib.util


def require_matplotlib() -> None:
    """Raise a ValueError with the command that installs matplotlib, if it is missing.

    What draws is imported after this call, where a picture is asked for: matplotlib is optional,
    and slow to import.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('pictures need matplotlib; run: pip install "lora-jax[plots]"')
