"""Count the parameters of a method, in one way for all tables, reports and pictures.

What counts is what the adapter trains. The head, and whatever else `also_train` names, is left out,
as in papers: its size is the same for all methods. Full fine-tuning has no adapter; all weights of
its model count, the head's too. Of a method that drops ranks while it trains, only what it keeps
counts, which may differ between seeds.
"""

from collections.abc import Iterable, Sequence

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


def text(found: Sequence[int]) -> str:
    """Numbers of parameters as text: `331,776`, or `328,704 to 334,080`; empty if there are none.

    Args:
      found: as `counts` returns them.
    """
    ends = dict.fromkeys((found[0], found[-1]) if found else ())
    return " to ".join(f"{each:,}" for each in ends)
