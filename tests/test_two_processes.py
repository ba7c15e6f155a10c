"""Two processes train one run: as one does, to the same bits however it is interrupted."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("divided_run.py")
SECONDS = 180  # after which a process is given up


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, *, processes=1, mesh=(1, 1, 1), more=None):
    """The processes of a run, with `more` arguments for each of them."""
    devices = math.prod(mesh) // processes
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    line = [sys.executable, str(SCRIPT), "--folder", str(folder), "--mesh", *map(str, mesh)]
    line += ["--processes", str(processes), "--port", str(port())]
    return [
        subprocess.Popen(
            [*line, "--process", str(n), *(more[n] if more else ())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
        )
        for n in range(processes)
    ]


def finish(running, code=0):
    """What each of the processes has printed last; none outlives this."""
    said = []
    try:
        for each in running:
            out, err = each.communicate(timeout=SECONDS)
            assert each.returncode == code, f"{each.returncode}\n{out}\n{err}"
            said.append(json.loads(out.splitlines()[-1]))
    finally:
        for each in running:
            each.kill()
            each.wait()
    return said


TWO = {"processes": 2, "mesh": (1, 2, 2)}  # fsdp goes from one process to the other


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder and the words of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, finish(start(folder, **TWO))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, finish(start(folder))[0]


def test_two_processes_train_as_one_does(straight, alone):
    folder, (first, second) = straight
    assert first["leaves"] == second["leaves"] and first["losses"] == second["losses"]
    assert first["spread"] == second["spread"] >= 2  # no process has those whole
    ours, theirs = (list(each["losses"].values()) for each in (first, alone[1]))
    assert len(ours) == 60 and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (folder, alone[0])]
    assert len(lines[0]) == len(lines[1]) == 63  # one process writes; every 20 steps the score
    assert first["warnings"] == second["warnings"] == []


def test_what_two_processes_saved_others_restore_and_the_other_way(straight, alone, tmp_path):
    """The state is verified as it is read, and its checksum does not know how it is divided."""
    read = ["--read", str(straight[0] / "checkpoints")]
    for mesh, more in [((1, 1, 1), []), ((2, 2, 2), ["--turned"])]:
        (found,) = finish(start(tmp_path, mesh=mesh, more=[[*read, *more]]))
        assert found["leaves"] == straight[1][0]["leaves"] and found["steps"] == 60
    read = ["--read", str(alone[0] / "checkpoints")]
    for found in finish(start(tmp_path, **TWO, more=[read, read])):
        assert found["leaves"] == alone[1]["leaves"] and found["spread"] >= 2


def test_both_do_without_a_step_that_one_of_them_cannot_read(straight, tmp_path):
    folder = shutil.copytree(straight[0] / "checkpoints", tmp_path / "saved")
    each = [["--read", str(folder)], ["--read", str(folder), "--misreads", "60"]]
    first, second = finish(start(tmp_path, **TWO, more=each))
    assert first["leaves"] == second["leaves"] and first["steps"] == second["steps"] == 50
    assert "60 is damaged: process 1 says so" in first["warnings"][0]
    assert "60 is damaged: OSError: the network is down" in second["warnings"][0]


def test_sigterm_to_one_stops_both_at_one_step_and_they_go_on_to_the_same_bits(straight, tmp_path):
    running = start(tmp_path, **TWO)
    assert running[1].stdout is not None
    assert any(line == "ready\n" for line in iter(running[1].stdout.readline, ""))
    running[1].send_signal(signal.SIGTERM)
    first, second = finish(running, code=75)
    assert first["steps"] == second["steps"] < 60
    assert (tmp_path / "checkpoints" / str(first["steps"])).is_dir()
    for found, whole in zip(finish(start(tmp_path, **TWO)), straight[1], strict=True):
        assert found["leaves"] == whole["leaves"]
        assert len(found["losses"]) == 60 - first["steps"]
    lines = [(each / "metrics.jsonl").read_text() for each in (tmp_path, straight[0])]
    assert lines[0] == lines[1]


def test_kill_9_during_a_save(straight, tmp_path):
    """And the other one is killed as a scheduler does; then a bit flips in what they had saved."""
    running = start(tmp_path, **TWO, more=[[], ["--dies_saving", "40"]])
    try:
        assert running[1].wait(SECONDS) == -signal.SIGKILL
    finally:
        for each in running:
            each.kill()
            each.communicate()
    left = {each.name for each in (tmp_path / "checkpoints").iterdir()}
    assert {"20", "30"} <= left and "40" not in left and any("tmp" in each for each in left)
    damaged = shutil.copytree(tmp_path, tmp_path / "damaged")
    assert_same_end(tmp_path, straight, 30)

    file = max((damaged / "checkpoints" / "30").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for found in assert_same_end(damaged, straight, 20):
        assert len(found["warnings"]) == 1 and "30 is damaged: " in found["warnings"][0]


def assert_same_end(folder, straight, since):
    """Two processes go on from a step, and end as those that nothing interrupted."""
    both = finish(start(folder, **TWO))
    for found, whole in zip(both, straight[1], strict=True):
        assert list(found["losses"]) == [str(step) for step in range(since + 1, 61)]
        assert found["leaves"] == whole["leaves"]
    return both
