"""A running sweep shows its trials in a table, and says in a line how each ended."""

import io

import pytest
from quickstart_sweep import sweep, trained_one
from rich.console import Console

from experiments.sweeps.folder import TrialState, lock
from experiments.sweeps.view import View, clock, summary
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.loop_settings import Loop

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_what_is_shown(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    loops = [Loop(20, metric="accuracy")] * 3
    told = io.StringIO()
    view = View(found, loops, folder, Console(file=told, width=100))
    folder.begin("seed=0")
    with lock(folder.lock_file("seed=0")):
        with Metrics(folder.run("seed=0")) as log:
            log.write(5, {"loss": 0.75})
            view.update(now=True)
            log.write(10, {"loss": 0.5, "grad_norm": 1.0})
            log.write(10, {"accuracy": 0.625, "eval_loss": 0.6})
            view.update(now=True)
        row = view.rows[0]
        assert (row.step, row.loss, row.score) == (10, 0.5, 0.625)
        assert row.seconds_left is not None
        shown = io.StringIO()
        Console(file=shown, width=100).print(view.table())
        lines = [line.split() for line in shown.getvalue().splitlines()]
        assert lines[0] == ["trial", "status", "step", "loss", "metric", "time", "left"]
        assert lines[1][:6] == ["seed=0", "running", "10/20", "0.500", "accuracy", "0.6250"]
        assert lines[2] == ["seed=1", "waiting", "0/20"]
        assert lines[4] == ["1", "running,", "2", "waiting"]
        short = io.StringIO()
        Console(file=short, width=100).print(view.table(height=7))
        assert "2 not shown" in short.getvalue()
        assert "seed=0" in short.getvalue()
    trained_one(found[0].config, folder.run("seed=0"))
    folder.end("seed=1", "failed", "ValueError: [so] it is")
    view.update(now=True)
    assert told.getvalue().splitlines() == [
        "seed=0: running",
        "seed=0: completed, accuracy 0.6250 (1 of 3)",
        "seed=1: failed, ValueError: [so] it is (2 of 3)",
    ]
    assert not all(row.state.ended for row in view.rows)
    assert summary(view.rows, folder) == [
        "3 trials: 1 completed, 1 failed, 1 waiting",
        "seed=1: failed, ValueError: [so] it is",
        f"records: {folder.path / 'trials'}",
    ]
    assert [clock(each) for each in (41.6, 200, 18600)] == ["42 s", "3 min 20 s", "5 h 10 min"]


def test_a_narrow_terminal_cuts_names_alone(tmp_path):
    folder, found = sweep(tmp_path, "variant=lora,dora", "config.optimizer.learning_rate=1e-3,3e-3")
    view = View(found, [Loop(1200, metric="accuracy")] * 4, folder, Console(file=io.StringIO()))
    for row in view.rows:
        row.state = TrialState("completed")
        row.step, row.loss, row.score = 1200, 0.125, 0.59375
    shown = io.StringIO()
    Console(file=shown, width=80).print(view.table())
    _, *lines, caption = shown.getvalue().splitlines()
    assert (len(lines), caption.split()) == (4, ["4", "completed"])
    for line in lines:
        name, *rest = line.split()
        assert name.startswith("variant=")
        assert rest == ["completed", "1200/1200", "0.125", "accuracy", "0.5938"]
