"""Count the parameters of a method, in one way for all tables, reports and pictures.

What counts is what the adapter trains. The head, and whatever else `also_train` names, is left out,
as in papers: its size is the same for all methods. Full fine-tuning has no adapter; all weights of
its model count, the head's too. Of a method that drops ranks while it trains, only what it keeps
counts, which may differ between seeds.
"""

from collections.abc import Iterable, Sequence

from experiments.analysis.choose_methods import Contest
from lora_jax.records.run_record import Record

HEADING = "parameters"
NOTE = (
    "Parameters are those that the adapter trains, without the head, which is the same for all "
    "methods. Full fine-tuning has no adapter: all weights of its model count, those of the head, "
    "too. Of a method that drops ranks, only what it keeps counts."
)


def counts(records: Iterable[Record]) -> tuple[int, ...]:
    """The different numbers of parameters of completed runs, smallest first.

    Runs of an early version, which did not record the number, are left out.
    """
    found = {each.parameters_adapters for each in records if each.status == "completed"}
    return tuple(sorted(each for each in found if each is not None))


MATCHED = 0.05
"""Numbers of parameters are matched if they differ by no more than this share."""


def of_methods(contests: Iterable[Contest]) -> dict[str, tuple[int, ...]]:
    """The numbers of parameters of each method's scored runs on all tasks, by its key."""
    records: dict[str, list[Record]] = {}
    for method in (method for contest in contests for method in contest.methods):
        records.setdefault(method.key, []).extend(run.record for run in method.runs)
    return {key: counts(own) for key, own in records.items()}


def share(own: Sequence[int], other: Sequence[int]) -> float | None:
    """How many times as many parameters one method has as another, by the largest numbers."""
    return own[-1] / other[-1] if own and other and other[-1] else None


def matched(own: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two methods have as many parameters, but for `MATCHED`."""
    found = share(own, other)
    return found is not None and abs(found - 1) <= MATCHED


def text(found: Sequence[int]) -> str:
    """Numbers of parameters as text: `331,776`, or `328,704 to 334,080`; empty if there are none.

    Args:
      found: as `counts` returns them.
    """
    ends = dict.fromkeys((found[0], found[-1]) if found else ())
    return " to ".join(f"{each:,}" for each in ends)
