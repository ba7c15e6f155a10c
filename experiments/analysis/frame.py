"""All runs of a folder as pandas DataFrames, for analyses of one's own.

    from experiments.analysis import frame
    frame.settings("runs/sweep").groupby(["method", "rank"])["score"].mean()  # what differs
    runs = frame.runs("experiments/results/against_lora")  # all that records say
    runs.groupby(["config.study.column", "config.study.row"])["score"].mean()

It needs pandas: pip install "lora-jax[frames]".
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pandas

from experiments.analysis import collect_runs, labels, recorded_runs, setting_grid

SERIES = ("evaluations", "samples", "ranks", "rungs")
"""Fields of a record that have more than a value for a run; `metrics` has the evaluations."""


def runs(folder: str | os.PathLike) -> pandas.DataFrame:
    """A row for each recorded run below a folder, packed or not, in the order of their paths.

    Columns are named as in records and flags, `config.optimizer.learning_rate` and
    `metrics_best.accuracy`. Beside them, `run` is the path of the run below the folder, `sealed`
    says whether its record has a seal, and `score` is the main metric of the adapter that it saved,
    as the record has it, so a fraction where reports have percent; NaN if there is none.

    Raises:
      ValueError, FileNotFoundError: as `recorded_runs.find`.
    """
    rows = []
    for each in recorded_runs.find(Path(folder)):
        kept = dataclasses.asdict(each.record)
        own = {key: it for key, it in kept.items() if key not in SERIES and it is not None}
        score = recorded_runs.saved_metrics(each.record).get(each.record.metric)
        name = each.folder.relative_to(folder).as_posix()
        rows.append({"run": name, "sealed": each.sealed, "score": score, **own})
    return pandas.json_normalize(rows)


def settings(folder: str | os.PathLike) -> pandas.DataFrame:
    """A row for each run below a folder, also of those without a record, such as killed ones.

    Columns are `run`, `method`, each setting that differs by its short name (`learning rate`,
    `rank`), `seed`, `draw`, `status`, `metric` and `score`. `score` is the main metric of the
    adapter that the run saved, in percent where reports have percent; NaN if there is none.

    Raises:
      ValueError, FileNotFoundError: as `recorded_runs.find` and `recorded_runs.find_unfinished`.
    """
    folder = Path(folder)
    lost = [run for run in recorded_runs.find_unfinished(folder) if run.config is not None]
    every = [*recorded_runs.find(folder), *lost]
    groups: dict[str, list[Mapping[str, str]]] = {}
    for run in every:
        groups.setdefault(collect_runs.method_key(run), []).append(run.settings)
    names = setting_grid.names_of_differing(list(groups.values()))
    rows = []
    for run in every:
        record = run.record if isinstance(run, recorded_runs.Run) else None
        score = record and recorded_runs.saved_metrics(record).get(record.metric)
        percent = 1.0 if record is None else recorded_runs.scale(record.metric)
        seed, draw = run.number
        own = {name: setting_grid.value_of(run.settings, key) for key, name in names.items()}
        rows.append(
            {
                "run": run.folder.relative_to(folder).as_posix(),
                "method": labels.method(collect_runs.method_key(run)),
                **own,
                "seed": seed,
                "draw": draw,
                "status": record.status if record else getattr(run, "status", ""),
                "metric": record and record.metric,
                "score": math.nan if score is None else percent * score,
            }
        )
    return pandas.DataFrame(rows)


def metrics(folder: str | os.PathLike) -> pandas.DataFrame:
    """A row for each report of these runs: `run`, `step`, and what was reported, such as `loss`.

    Raises:
      As `runs`; ValueError also for metrics that were changed or cut.
    """
    folder = Path(folder)
    return pandas.DataFrame(
        [
            {"run": each.folder.relative_to(folder).as_posix(), **row}
            for each in recorded_runs.find(folder)
            for row in each.metrics()
        ]
    )
