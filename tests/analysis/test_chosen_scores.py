"""Tables, figures, comparisons and searches take the evaluation that is chosen: best or last."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from fake_records import write

from experiments.analysis import recorded_runs
from experiments.analysis.choose_methods import contests
from experiments.figures.scores import panels
from experiments.search.search import score
from experiments.tables import cells, config_tables

BEST, LAST = (0.9, 0.8, 0.64, 0.95), (0.5, 0.7, 0.62, 0.4)
"""Of four seeds; that of the last one diverged."""


@pytest.mark.parametrize("choose", ["best", "last"])
def test_the_chosen_evaluation_is_taken_everywhere(tmp_path, choose):
    records = [
        write(
            tmp_path / str(seed),
            "glue",
            f"task=sst2,variant=lora,seed={seed}",
            {},
            changes={"train.select": choose},
            metrics_best={"accuracy": best},
            metrics_last={"accuracy": last},
            status="diverged" if seed == 3 else "completed",
            parameters=1,
        )
        for seed, (best, last) in enumerate(zip(BEST, LAST, strict=True))
    ]
    runs = recorded_runs.find(tmp_path)
    wanted = [100 * score for score in (BEST if choose == "best" else LAST)][:3]
    mean = pytest.approx(sum(wanted) / 3)
    own: dict[str, Any] = {"choose": choose, "report": "mean"}

    (block,) = cells.blocks({**config_tables.tables()["glue"], **own}, runs, ())
    places = [n for n, column in enumerate(block.columns) if column.task == "sst2"]
    assert [block.rows[0].cells[n].ours.centre for n in places] == [mean]
    (panel,) = panels(runs)
    panel = dataclasses.replace(panel, table={**panel.table, **own})
    assert panel.score([run for run in runs if run.completed]).centre == mean

    (contest,) = contests(runs, {})
    (method,) = contest.methods
    scores = {seed: score for (seed, _), score in method.scores().items()}
    assert scores == pytest.approx({**dict(enumerate(wanted)), 3: 100 * LAST[3]})

    folder: Any = SimpleNamespace(run=lambda name: tmp_path / name)
    loop: Any = SimpleNamespace(metric="accuracy")
    trials: Any = [
        SimpleNamespace(name=str(n), digest=r.config_digest) for n, r in enumerate(records)
    ]
    found = [score(folder, each, loop) for each in trials]
    assert found == [*(pytest.approx(score / 100) for score in wanted), None]
