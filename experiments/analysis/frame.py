"""All runs of a folder as pandas DataFrames, for analyses of one's own.

    from experiments.analysis import frame
    runs = frame.runs("experiments/results/against_lora")
    runs.groupby(["config.study.column", "config.study.row"])["score"].mean()

It needs pandas: pip install "lora-jax[frames]".
"""

import dataclasses
import os
from pathlib import Path

import pandas

from experiments.analysis import recorded_runs

SERIES = ("evaluations", "samples", "ranks", "rungs")
"""Fields of a record that have more than a value for a run; `metrics` has the evaluations."""


def runs(folder: str | os.PathLike) -> pandas.DataFrame:
    """A row for each recorded run below a folder, packed or not, in the order of their paths.

    Columns are named as in records and flags, `config.optimizer.learning_rate` and
    `metrics_best.accuracy`. Beside them, `run` is the path of the run below the folder, `sealed`
    says whether its record has a seal, and `score` is the main metric of the adapter that it saved,
    as the record has it; NaN if there is none.

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
