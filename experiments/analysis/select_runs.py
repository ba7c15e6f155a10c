"""Select the runs of a report, such that those of a study stay among themselves."""

from collections.abc import Callable, Sequence

from configs.settings import COMBINED, IMPORTED
from experiments.analysis.collect_runs import left_out
from experiments.analysis.recorded_runs import Run
from lora_jax.suggest import require_known


def select(runs: Sequence[Run], table: str | None, size: str) -> tuple[list[Run], list[str]]:
    """The runs of a table and a size, and notes on how many others were left out.

    Combined and imported adapters are left out where others were trained, runs without a study
    where others have one, and runs without a registration where others of their table have one.

    Args:
      table: None for the runs of all tables.

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
        kept += _registered(name, [run for run in own if _name(run) == name])
    notes.append(left_out(len(own) - len(kept), "of no registration, though their study has one"))
    same = {id(run) for run in kept}
    return [run for run in own if id(run) in same], list(filter(None, notes))


def _registered(table: str, runs: Sequence[Run]) -> list[Run]:
    digests = sorted({run.study.registration for run in runs} - {""})
    if len(digests) > 1:
        folders = [
            str(next(run.folder for run in runs if run.study.registration == digest))
            for digest in digests[:2]
        ]
        raise ValueError(
            f"runs of {table} belong to {len(digests)} registrations ({' and '.join(folders)}): "
            "keep the runs of each in the folder of its own study.json, and give that (--results)"
        )
    return _those(runs, lambda run: bool(run.study.registration))


def _those(runs: Sequence[Run], has: Callable[[Run], bool]) -> list[Run]:
    """The runs that have something, or all if none has it."""
    return [run for run in runs if has(run)] or list(runs)


def _name(run: Run) -> str:
    return run.study.table or run.record.experiment
