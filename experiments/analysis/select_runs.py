"""Select the runs of a report, such that those of a study stay among themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.settings import COMBINED, IMPORTED
from experiments.analysis.collect_runs import left_out
from experiments.analysis.comparable import contest_key
from experiments.analysis.labels import natural
from experiments.analysis.recorded_runs import REGISTRATION, Run
from lora_jax.suggest import require_known


def select(
    runs: Sequence[Run], table: str | None, size: str, parts: bool = False
) -> tuple[list[Run], list[str]]:
    """The runs of a table and a size, and notes on how many others were left out.

    Combined and imported adapters are left out where others were trained, runs without a study
    where others have one, and runs without a registration where others of their table have one.

    Args:
      table: None for the runs of all tables.
      parts: whether a table may have several registrations. Each needs a folder and tasks of its
        own.

    Raises:
      ValueError: there are no runs of the table, or those of one table are of two registrations.
    """
    known = sorted({_name(run) for run in runs})
    if table is not None:
        require_known(table, known, f"no runs of --table={table}")
    every = [run for run in runs if table in (None, _name(run))]
    sized = [run for run in every if run.study.size == size]
    trained = _those(sized, lambda run: run.record.experiment not in (COMBINED, IMPORTED))
    own = _those(trained, lambda run: bool(run.study.table))
    notes = [
        left_out(len(every) - len(sized), "of another size"),
        left_out(len(sized) - len(trained), "combined or imported, so not trained here"),
        left_out(len(trained) - len(own), "of no study, so not mixed into one"),
    ]
    kept: list[Run] = []
    for name in sorted({_name(run) for run in own}):
        kept += _registered(name, [run for run in own if _name(run) == name], parts)
    notes.append(left_out(len(own) - len(kept), "of no registration, though their study has one"))
    same = {id(run) for run in kept}
    return [run for run in own if id(run) in same], list(filter(None, notes))


def _registered(table: str, runs: Sequence[Run], parts: bool) -> list[Run]:
    known = _those(runs, lambda run: bool(run.study.registration))
    by_digest = {
        digest: [run for run in known if run.study.registration == digest]
        for digest in sorted({run.study.registration for run in known})
    }
    if len(by_digest) > 1 and not (parts and _are_parts(list(by_digest.values()))):
        raise ValueError(
            f"runs of {table} belong to {len(by_digest)} registrations"
            f"{_what_to_give(list(by_digest.values()))} (--results)"
        )
    return known


def _are_parts(registered: Sequence[Sequence[Run]]) -> bool:
    """Whether the runs of each registration have a folder and tasks of their own."""
    tasks = [{contest_key(run) for run in runs} for runs in registered]
    apart = sum(map(len, tasks)) == len(set.union(*tasks))
    return apart and len(_homes(registered)) == len(registered)


def _what_to_give(registered: Sequence[Sequence[Run]]) -> str:
    homes = _homes(registered)
    if len(homes) == len(registered):
        return f": give one of {', '.join(homes)}"
    folders = " and ".join(str(runs[0].folder) for runs in registered[:2])
    own = f"the folder of its own {REGISTRATION}"
    return f" ({folders}): keep the runs of each in {own}, and give that"


def _homes(registered: Sequence[Sequence[Run]]) -> list[str]:
    """The folders of the studies that the first runs of each registration lie in."""
    return natural(str(home) for runs in registered if (home := _home(runs[0].folder)))


def _home(folder: Path) -> Path | None:
    return next((each for each in folder.parents if (each / REGISTRATION).exists()), None)


def _those(runs: Sequence[Run], has: Callable[[Run], bool]) -> list[Run]:
    """The runs that have something, or all if none has it."""
    return [run for run in runs if has(run)] or list(runs)


def _name(run: Run) -> str:
    return run.study.table or run.record.experiment
