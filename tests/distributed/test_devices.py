"""The line that says which devices a command computes on."""

import types

import pytest

from experiments.distributed.devices import described
from experiments.sweeps.launchers.local import Slot, described as of_slots


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
