"""What a contender does: a file for each side, with a function for each work that the side has.

`NAME_work(case)` gives a `Made`: a function that does the work once, and facts that need no clock.
`with_peft` imports torch, transformers and PEFT inside functions.
"""

import importlib

from benchmarks.cases import Contender
from benchmarks.contenders.made import Made


def make(contender: Contender) -> Made:
    """Make a contender.

    Raises:
      ValueError: its side has no such work.
    """
    name = "with_peft" if contender.side == "peft" else contender.side
    module = importlib.import_module(f"{__name__}.{name}")
    work = getattr(module, f"{contender.case.work}_work", None)
    if work is None:
        raise ValueError(f"{contender.side} has no {contender.case.work}")
    return work(contender.case)
