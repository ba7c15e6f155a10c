"""Topologies of accelerators: their devices and memory, and how to compile programs for them.

If libtpu is installed (`pip install "lora-jax[tpu]"`), it compiles programs for TPUs ahead of time;
no TPU is needed. Otherwise, and for GPUs, programs are compiled for simulated CPU devices. Arrays
then have the same shardings, but temporaries are those of a program for the CPU, in which some
numbers are float32 that are bfloat16 on other devices. The table compares both, in GiB for each
device, for Llama 2 and `configs/llama2_70b.py` with one row of 2048 tokens a shard. It was measured
with libtpu 0.0.42.1 and jax 0.10.2, a version that this package refuses by now:

                                 libtpu   simulated
    70B, LoRA, v5e:4x4 by 1,4,4    2.70        2.66
    70B, NF4,  v5e:4x4 by 1,4,4    2.64        2.91
    7B,  LoRA, v5e:2x2 by 1,2,2    1.26        1.83
    7B,  NF4,  v5e:2x2 by 1,2,2    1.36        1.83
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from lora_jax.error_text import said
from lora_jax.suggest import nearest_or_all

GIB = 2**30
MOST = 512
"""The most devices that the CPU simulates; creating that many takes seconds."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of devices."""

    gib: float
    """Memory of one device that a program may use, in GiB."""
    listed: tuple[str, ...]
    """The sizes that are offered, smallest first."""
    per_chip: int = 1
    """How many devices a chip has."""
    tpu: bool = True
    megacore: bool = False
    """Whether libtpu must be told that a chip's two cores are one device."""
    has_others: bool = True
    """Whether there are other sizes than those that are listed."""


_TWO_AXES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# The memory of TPUs is the limit that libtpu 0.0.42.1 reports for a program that asks for 2 TB.
# That of GPUs is their nominal size in units of 10^9 bytes, as some of the memory is never free.
# All sizes of v5e and v6e: https://cloud.google.com/tpu/docs/v5e and /v6e.
KINDS = {
    "v3": Kind(15.48, ("2x2", "4x4", "8x8", "16x16"), 2),
    "v4": Kind(30.75, ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8"), megacore=True),
    "v5e": Kind(15.75, _TWO_AXES, has_others=False),
    "v5p": Kind(95.74, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")),
    "v6e": Kind(31.25, _TWO_AXES, has_others=False),
    "tpu7x": Kind(94.75, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"), 2),
    "l4": Kind(24e9 / GIB, ("1", "2", "4", "8"), tpu=False),
    "a100-40": Kind(40e9 / GIB, ("1", "2", "4", "8", "16"), tpu=False),
    "a100-80": Kind(80e9 / GIB, ("1", "2", "4", "8", "16", "32"), tpu=False),
    "h100": Kind(80e9 / GIB, ("1", "2", "4", "8", "16", "32"), tpu=False),
    "h200": Kind(141e9 / GIB, ("1", "2", "4", "8", "16", "32"), tpu=False),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind and the shape in which they are connected: `v5e:4x4`, `h100:8`."""

    kind: str
    bounds: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.bounds))}"

    @property
    def devices(self) -> int:
        return math.prod(self.bounds) * KINDS[self.kind].per_chip

    @property
    def capacity(self) -> int:
        """Bytes of one device."""
        return int(KINDS[self.kind].gib * GIB)

    @property
    def ahead(self) -> bool:
        """Whether programs for these devices themselves can be compiled here, ahead of time."""
        return KINDS[self.kind].tpu and has_libtpu()


def topology(name: str) -> Topology:
    """The topology with a name, of a listed size, or any other where there are others.

    Raises:
      ValueError: an unknown kind, a size of the wrong form, or one that the kind does not have.
    """
    kind, _, size = name.partition(":")
    if kind not in KINDS:
        near = nearest_or_all(kind, KINDS)
        raise ValueError(f"--topology={name}: no devices '{kind}'{near}; as in v5e:4x4")
    listed = KINDS[kind].listed
    axes = len(listed[-1].split("x"))
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{axes - 1}}}", size):
        raise ValueError(
            f"--topology={name}: expected {kind}: and a size, such as {kind}:{listed[0]}"
        )
    if size not in listed and not KINDS[kind].has_others:
        raise ValueError(f"--topology={name}: no slice of {kind}; there are {', '.join(listed)}")
    return Topology(kind, tuple(map(int, size.split("x"))))


def listed(kind: str) -> list[Topology]:
    """The topologies of a kind that are offered, smallest first."""
    return [topology(f"{kind}:{size}") for size in KINDS[kind].listed]


def check_device_count(chosen: Topology) -> None:
    """Raise a ValueError if there are too many devices to simulate."""
    if not chosen.ahead and chosen.devices > MOST:
        raise ValueError(f"{chosen} has {chosen.devices} devices; at most {MOST} are simulated")


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def prepare(devices: int) -> None:
    """Run this process on the CPU with `devices` simulated devices; call it before any JAX work."""
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile at once, as none uses a TPU
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def devices_of(chosen: Topology) -> Sequence[Any]:
    """The devices to compile for: descriptions of absent TPUs, or as many simulated CPU devices.

    Raises:
      ValueError: libtpu does not know the topology.
    """
    if not chosen.ahead:
        return jax.devices("cpu")[: chosen.devices]
    from jax.experimental import topologies

    own: dict[str, Any] = {}
    if math.prod(chosen.bounds) == 1:
        own["chips_per_host_bounds"] = (1, 1, 1)
    if KINDS[chosen.kind].megacore:
        own["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=str(chosen), **own
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = said(error)
        raise ValueError(f"libtpu knows no topology '{chosen}': {reason}") from None
