"""Processes of one run and their devices: what is asked of the command line, and who says what."""

import socket
import types

import pytest

from experiments.setup import processes
from experiments.setup.devices import described
from experiments.sweeps.launchers.local import Slot, described as of_slots

ALL = {"coordinator": "node:8476", "processes": 2, "process": 1}


@pytest.mark.parametrize("given", [{}, ALL, ALL | {"coordinator": "[::1]:1"}, {"found": True}])
def test_combinations_that_work(given):
    processes.check_arguments(
        **{"coordinator": None, "processes": None, "process": None, "found": False} | given
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"process": 1}, "--process needs --coordinator, too"),
        ({"processes": 2}, "--processes needs --coordinator, too"),
        ({"coordinator": "node:1", "process": 0}, "--coordinator needs --processes, too"),
        (ALL | {"process": None}, "--coordinator needs --process, too"),
        (ALL | {"process": 2}, "--process=2: expected 0 to 1 of --processes=2"),
        (ALL | {"process": -1}, "--process=-1: expected 0 to 1 of --processes=2"),
        (ALL | {"coordinator": "node"}, "--coordinator=node: expected host:port, as 10.0.0.1:8476"),
        (ALL | {"coordinator": ":8476"}, "--coordinator=:8476: expected host:port"),
        (ALL | {"coordinator": "node:99999"}, "--coordinator=node:99999: expected host:port"),
        (ALL | {"found": True}, "--distributed finds all by itself: leave out --coordinator"),
    ],
)
def test_combinations_that_do_not(given, said):
    with pytest.raises(ValueError) as caught:
        processes.initialize(**given)
    assert str(caught.value).startswith(said)


def test_alone_a_process_writes_and_waits_for_nobody():
    tree = {"w": object()}
    assert processes.writes() and processes.whole(tree) is tree
    processes.together("here")
    assert processes.first(lambda: tree) is tree


def test_a_port_in_use_is_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"^--coordinator={coordinator}: Address already in "):
            processes.initialize(coordinator, 2, 0)


def device(kind, platform="gpu", limit=None, process=0):
    stats = None if limit is None else {"bytes_limit": limit}
    return types.SimpleNamespace(
        platform=platform, device_kind=kind, process_index=process, memory_stats=lambda: stats
    )


@pytest.mark.parametrize(
    ("devices", "processes", "said"),
    [
        ([device("H100", limit=64 * 2**30)], 1, "1 x H100 with 64.0 GiB each"),
        ([device("v5e", "tpu")] * 4, 1, "4 x v5e"),
        ([device("L4"), device("T4"), device("L4")], 1, "2 x L4 and 1 x T4"),
        ([device("L4"), device("L4", limit=1, process=1)], 2, "2 x L4, in 2 processes"),
        (
            [device("L4", limit=2**30), device("L4", process=1)],
            2,
            "2 x L4 with 1.0 GiB each, in 2 processes",
        ),
    ],
)
def test_accelerators_are_counted_by_kind(devices, processes, said):
    assert described(devices, processes) == said


def test_a_cpu_is_described_by_its_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
    monkeypatch.setattr("lora_jax.sharding.memory.host_memory", lambda: 3 * 2**30)
    said = "1 CPU device on 2 cores, 3.0 GiB of memory are available"
    assert described([device("cpu", "cpu")]) == said


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ([Slot({}, (0, 1))], "1 process on the CPU, with 2 cores each"),
        ([Slot({}, (0,)), Slot({}, (1,))], "2 processes on the CPU, with 1 core each"),
        ([Slot({}, (), "tpu")], "1 process on the TPU"),
        (
            [Slot({"CUDA_VISIBLE_DEVICES": each}, (0,)) for each in ("3", "7", "3")],
            "3 processes on GPU 3, GPU 7",
        ),
    ],
)
def test_the_processes_of_a_sweep(machine, said):
    assert of_slots(machine) == said
