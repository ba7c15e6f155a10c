"""The log of metrics keeps every line that was written, and no other."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from lora_jax.records.metrics_log import LostFolderError, Metrics, read_metrics

numbers = st.floats(allow_nan=True) | st.integers(-100, 100)
histories = st.lists(st.tuples(st.integers(0, 9), numbers), max_size=12)


@settings(max_examples=60)
@given(histories, st.integers(-1, 10), st.binary(max_size=8).filter(lambda b: b"\n" not in b))
def test_truncation_keeps_the_rows_up_to_a_step_and_drops_a_torn_line(
    tmp_path_factory, rows, step, torn
):
    folder = tmp_path_factory.mktemp("metrics")
    with Metrics(folder) as metrics:
        for at, value in rows:
            metrics.write(at, {"loss": value, "eval/n": 1})
    with metrics.path.open("ab") as file:
        file.write(torn)
    with Metrics(folder) as metrics:
        metrics.truncate(step)
        metrics.write(99, {"loss": 0.5})
    want = [{"step": at, "loss": v, "eval/n": 1} for at, v in rows if at <= step]
    want.append({"step": 99, "loss": 0.5})
    got = read_metrics(metrics.path)
    assert repr(got) == repr(want)  # repr: NaN equals NaN, and 1 is not 1.0
    for line in metrics.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert os.listdir(folder) == ["metrics.jsonl"]


def test_a_broken_line_in_the_middle_is_an_error_and_at_the_end_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')
    assert read_metrics(path) == [{"step": 1}]
    for bad in (b"\0", b"{}", b"[]", b'{"step": "1"}', b'{"step": true}'):
        path.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 2}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a JSON object with a"):
            Metrics(tmp_path)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("away", [shutil.rmtree, lambda folder: folder.rename(f"{folder}.old")])
def test_lines_are_not_written_where_another_folder_is_by_now(tmp_path, away, other):
    folder = tmp_path / "run"
    with Metrics(folder) as metrics:
        metrics.write(1, {})
        metrics.require()
        away(folder)
        if other:
            Metrics(folder).close()
        for write in (metrics.require, lambda: metrics.write(2, {})):
            with pytest.raises(
                LostFolderError, match=r"run/metrics\.jsonl was removed or replaced"
            ):
                write()
    assert [path.stat().st_size for path in folder.rglob("*")] == [0] * other


CHILD = """
import itertools, os, sys
from lora_jax.files.atomic import write_atomically
from lora_jax.records.metrics_log import Metrics
from pathlib import Path

for folder in map(Path, sys.argv[1:]):
    if child := os.fork():  # as imports take seconds
        os.waitpid(child, 0)
        print("ended", flush=True)
        continue
    print(os.getpid(), flush=True)
    with Metrics(folder) as metrics:
        for step in itertools.count():
            write_atomically(folder / "config.json", b"%d" % step * 10000)
            metrics.write(step, {"loss": step / 3})
            print(step, flush=True)
"""


def test_sigkill_leaves_whole_files_and_every_line_that_was_written(tmp_path):
    rng, folders = random.Random(0), [tmp_path / str(case) for case in range(3)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CHILD, *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as parent:
        assert parent.stdout is not None
        for folder in folders:
            child = int(parent.stdout.readline())
            seen = [int(parent.stdout.readline()) for _ in range(rng.randrange(5, 80))]
            os.kill(child, signal.SIGKILL)
            while "ended" not in parent.stdout.readline():
                pass
            rows = read_metrics(folder / "metrics.jsonl")
            assert rows == [{"step": i, "loss": i / 3} for i in range(len(rows))]
            assert len(rows) > seen[-1]
            text = (folder / "config.json").read_text()
            assert text in (str(len(rows)) * 10000, str(len(rows) - 1) * 10000)
