"""The table of a study's gains over its reference, over all tasks together."""

from collections.abc import Sequence

from experiments.analysis.gains import Estimate, Gain
from experiments.reports.sheets import DECIMALS, p_text
from experiments.tables.cells import NONE
from experiments.tables.text_formats import Sheet

HEADS = (
    "method",
    "verdict",
    "mean gain",
    "95% interval",
    "p (Holm)",
    "p of equivalence",
    "upper bound",
    "detectable",
    "on a new task",
    "seeds",
)
NOTE = (
    "A mean gain is over all tasks, with the same weight. p (Holm) is that of no difference, in "
    "the family of all methods; the p of equivalence is that of two one-sided tests against the "
    "margin. The upper bound is one-sided, 95%. Detectable is the smallest difference that the "
    "test would find with a power of 80%. The interval on a new task is by a random-effects model."
)


def gain_sheet(gains: Sequence[Gain], title: str) -> Sheet:
    """A row for each method, the largest gain first."""
    ordered = sorted(gains, key=lambda each: -each.over_tasks.mean)
    return Sheet(title, HEADS, [_row(each) for each in ordered])


def _row(gain: Gain) -> list[str]:
    whole = gain.over_tasks
    return [
        gain.label,
        gain.verdict,
        _signed(whole.mean),
        _interval(whole),
        p_text(gain.adjusted),
        p_text(gain.equivalent),
        _signed(gain.upper),
        NONE if gain.detectable is None else f"{gain.detectable:.{DECIMALS}f}",
        NONE if gain.new_task is None else _interval(gain.new_task),
        str(whole.n),
    ]


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.{DECIMALS}f}"


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return NONE
    return f"[{_signed(found.low)}, {_signed(found.high)}]"
