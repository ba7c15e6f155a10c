"""Two processes train one run: as one does, to the same bits however it is interrupted."""

import json
import math
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import small_model
from commands import Started, with_devices

import lora_jax as lj
from lora_jax.records import run_record

SCRIPT = Path(__file__).parents[1] / "support" / "divided_run.py"


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, *, processes=1, mesh=(1, 1, 1), more=None):
    """The processes of a run, with `more` arguments for each of them."""
    devices = math.prod(mesh) // processes
    line = [SCRIPT, "--folder", folder, "--mesh", *mesh, "--processes", processes, "--port", port()]
    return [
        Started(*line, "--process", n, *(more[n] if more else ()), **with_devices(devices))
        for n in range(processes)
    ]


def ended(running, code=0):
    """What each of the processes has printed; none outlives this."""
    try:
        found = [each.end() for each in running]
    finally:
        for each in running:
            each.kill()
    for each in found:
        assert each.returncode == code, f"{each.returncode}\n{each.stdout}\n{each.stderr}"
    return [each.stdout for each in found]


def finish(running, code=0):
    """What each of the processes has printed last."""
    return [json.loads(out.splitlines()[-1]) for out in ended(running, code)]


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


@pytest.mark.slow
def test_two_processes_train_as_one_does(straight, alone):
    folder, (first, second) = straight
    assert first["leaves"] == second["leaves"] and first["losses"] == second["losses"]
    assert first["spread"] == second["spread"] >= 2  # no process has those whole
    ours, theirs = (list(each["losses"].values()) for each in (first, alone[1]))
    assert len(ours) == 40 and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (folder, alone[0])]
    assert len(lines[0]) == len(lines[1]) == 42  # one process writes; every 20 steps the score
    assert {int(each.name) for each in (folder / "checkpoints").iterdir()} == {30, 40}
    assert first["warnings"] == second["warnings"] == []


@pytest.mark.slow
def test_both_audit_their_step_and_one_that_has_it_wrong_stops_both(straight, tmp_path):
    """Of a gradient that every device has whole, where all but those of process 1 have it right."""
    found = [each["audit"] for each in straight[1]]
    assert found[0] == found[1] and 0 < found[0]["error"] < found[0]["tolerance"]
    first, second = finish(start(tmp_path, **TWO, more=2 * [["--spoils", "1"]]))
    assert first == second and "wrong for 8 rows: the gradient of bias is off by" in first


@pytest.mark.slow
def test_what_two_processes_saved_another_restores(straight, tmp_path):
    """The state is verified as it is read, and its checksum does not know how it is divided."""
    read = ["--read", straight[0] / "checkpoints", "--turned"]
    ((found,),) = finish(start(tmp_path, mesh=(2, 2, 2), more=[read]))
    assert found["leaves"] == straight[1][0]["leaves"] and found["steps"] == 40


@pytest.fixture(scope="module")
def read(straight, alone, tmp_path_factory):
    """What two processes read of one, and where the second of them cannot read a step."""
    folder = tmp_path_factory.mktemp("read")
    damaged = shutil.copytree(straight[0] / "checkpoints", folder / "saved")
    arguments = ["--read", alone[0] / "checkpoints", damaged]
    more = [arguments, [*arguments, "--misreads", damaged]]
    return list(zip(*finish(start(folder, **TWO, more=more)), strict=True))


@pytest.mark.slow
def test_two_processes_restore_what_one_saved(read, alone):
    for found in read[0]:
        assert found["leaves"] == alone[1]["leaves"] and found["spread"] >= 2


@pytest.mark.slow
def test_both_do_without_a_step_that_one_of_them_cannot_read(read):
    first, second = read[1]
    assert first["leaves"] == second["leaves"] and first["steps"] == second["steps"] == 30
    assert "40 is damaged: found by process 1" in first["warnings"][0]
    assert "40 is damaged: OSError: the network is down" in second["warnings"][0]


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step_and_they_go_on_to_the_same_bits(straight, tmp_path):
    running = start(tmp_path, **TWO)
    while "ready\n" not in running[1].said():
        assert running[1].running
    for _ in range(2):  # of which the second ends nothing
        running[1].send(signal.SIGTERM)
    first, second = finish(running, code=75)
    assert first["steps"] == second["steps"] < 40
    assert (tmp_path / "checkpoints" / str(first["steps"])).is_dir()
    for found, whole in zip(finish(start(tmp_path, **TWO)), straight[1], strict=True):
        assert found["leaves"] == whole["leaves"]
        assert len(found["losses"]) == 40 - first["steps"]
    lines = [(each / "metrics.jsonl").read_text() for each in (tmp_path, straight[0])]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_flipped_bit_is_found_by_both_and_the_step_before_it_serves(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
    file = max((tmp_path / "checkpoints" / "40").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for found in assert_same_end(tmp_path, straight, 30):
        # Orbax may leave a coroutine behind where it fails, of which Python warns at some time.
        said = [each for each in found["warnings"] if "never awaited" not in each]
        assert len(said) == 1 and "40 is damaged: " in said[0]


@pytest.mark.slow
def test_kill_9_during_a_save(straight, tmp_path):
    """And the other one is killed as a scheduler does."""
    running = start(tmp_path, **TWO, more=[[], ["--dies_saving", "30"]])
    try:
        assert running[1].end().returncode == -signal.SIGKILL
    finally:
        for each in running:
            each.kill()
    left = {each.name for each in (tmp_path / "checkpoints").iterdir()}
    assert {"10", "20"} <= left and "30" not in left and any("tmp" in each for each in left)
    assert_same_end(tmp_path, straight, 20)


def assert_same_end(folder, straight, since):
    """Two processes go on from a step, and end as those that nothing interrupted."""
    both = finish(start(folder, **TWO))
    for found, whole in zip(both, straight[1], strict=True):
        assert list(found["losses"]) == [str(step) for step in range(since + 1, 41)]
        assert found["leaves"] == whole["leaves"]
    return both


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Starts processes of `experiments.train`, each with a device and flags of its own."""
    flags = small_model.flags(tmp_path_factory.mktemp("model"))

    def command(folder, each=((), ())):
        line = ["experiments.train", *flags, f"--workdir={folder}", f"--processes={len(each)}"]
        line.append(f"--coordinator=127.0.0.1:{port()}")
        return [
            Started(*line, f"--process={n}", *own, **with_devices(1)) for n, own in enumerate(each)
        ]

    return command


@pytest.mark.slow
def test_the_command_stops_with_code_75_and_goes_on(command, tmp_path):
    folder = tmp_path / "run"
    running = command(folder)
    while not (folder / "config.json").exists():  # then it compiles, for longer than it takes
        assert running[1].running
    running[1].send(signal.SIGTERM)
    first, second = ended(running, 75)
    assert "interrupted: step " in first and "interrupted" not in second
    assert not (folder / "record.json").exists()
    first, second = ended(command(folder))
    assert "completed after 8 steps" in first and "completed" not in second
    record = run_record.read(folder)
    assert record is not None and record.status == "completed" and record.audit["batches"] == 1
    first, second = ended(command(folder))  # nothing is left to do
    assert "completed after 8 steps" in first and "completed" not in second


@pytest.mark.slow
def test_two_processes_gather_what_one_does_and_share_it(command, tmp_path, monkeypatch):
    """LoRA-GA's gradients: of rows that no process has whole, then from the cache."""
    start = ("--config.variant.initialization=lora_ga", "--config.train.init_batches=2")

    def gathered(name, cache, processes=2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        ended(command(tmp_path / name, (start,) * processes))
        return run_record.read(tmp_path / name), lj.load_seen(tmp_path / name / "seen.safetensors")

    (first, (two, said)), (second, _) = (gathered(name, "shared") for name in ("first", "second"))
    assert first.gathered == second.gathered == said and said["examples"] == 16
    _, (one, _) = gathered("alone", "other", processes=1)
    assert one.keys() == two.keys() and len(one) > 5
    for path in two:
        mine, theirs = (np.einsum("...ri,...r,...ro->...io", *each[path]) for each in (two, one))
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale, err_msg=path)


def test_a_process_that_fails_alone_ends_the_other_one_too(command, tmp_path):
    """Before anything is written; the other one would wait for it for ever."""
    running = command(tmp_path / "run", ((), ("--config.train.batch_size=7",)))
    try:
        found = [each.end() for each in running]
    finally:
        for each in running:
            each.kill()
    assert all(each.returncode not in (0, -signal.SIGKILL) for each in found)
    said = "error: process 1: config.train.batch_size 7 does not divide over 2 devices"
    assert said in found[1].stderr
    assert not (tmp_path / "run" / "config.json").exists()
