"""Accelerators: their memory and speed, their topologies, and how to compile programs for them.

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

What a device can do at most, products and traffic with its memory, is from

* H100 SXM: NVIDIA H100 data sheet (half of the numbers "with sparsity");
* A100 80GB SXM: NVIDIA A100 data sheet;
* RTX 4090: NVIDIA Ada GPU architecture white paper, appendix A;
* TPU v5e, v5p: https://cloud.google.com/tpu/docs/v5e and /v5p.

The products of GPUs are dense ones with sums in float32. By default, JAX multiplies float32 as TF32
on these GPUs, and as one product of bfloat16 on TPUs.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.messages import nearest_or_all, said
from lora_jax.sharding import memory

GIB = 2**30


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


MOST_SIMULATED = 512
"""The most devices that the CPU simulates; creating that many takes seconds."""

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


# ---- speed ---------------------------------------------------------------------------------------

EFFICIENCY = 0.4
"""The share of the peak that training is taken to reach.

Published runs of large models report 38% to 46% of the FLOPs (Llama 3, arXiv 2407.21783, Table 4;
PaLM, arXiv 2204.02311, Table 3). Small models, whose operations are short, reach less.
"""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device."""

    narrow: float
    """FLOPs a second of products of bfloat16."""
    wide: float
    """The same of float32, as JAX multiplies it there by default."""
    traffic: float
    """Bytes a second between the device and its memory."""
    memory: float
    """Bytes."""


ACCELERATORS = {
    "h100": Accelerator(989e12, 494.5e12, 3.35e12, 80e9),
    "a100": Accelerator(312e12, 156e12, 2.039e12, 80e9),
    "rtx4090": Accelerator(165.2e12, 82.6e12, 1.008e12, 24e9),
    "v5e": Accelerator(197e12, 197e12, 0.819e12, KINDS["v5e"].gib * GIB),
    "v5p": Accelerator(459e12, 459e12, 2.765e12, KINDS["v5p"].gib * GIB),
}
CPU = "cpu"
"""The name of this machine's own processor, which is measured."""


def accelerator(name: str) -> Accelerator:
    """The accelerator of a name; that of `cpu` is measured, which takes about a second.

    Raises:
      ValueError: an unknown name.
    """
    if name == CPU:
        return measured()
    if name not in ACCELERATORS:
        known = (*ACCELERATORS, CPU)
        raise ValueError(f"--device={name}: unknown device{nearest_or_all(name, known)}")
    return ACCELERATORS[name]


def measured(size: int = 1024, repeats: int = 5) -> Accelerator:
    """This process's CPU: the fastest of some products of size x size, and of some copies."""
    flops = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jnp.ones((size, size), dtype)
        flops[dtype] = 2 * size**3 / _seconds(jax.jit(jnp.matmul), repeats, x, x)
    many = jnp.ones(32 * size * size, jnp.float32)
    # Each number is read once and written once.
    copied = 2 * many.nbytes / _seconds(jax.jit(lambda y: y + 1), repeats, many)
    room = float(memory.host_memory() or 0)
    return Accelerator(flops[jnp.bfloat16], flops[jnp.float32], copied, room)


def _seconds(call: Callable[..., Any], repeats: int, *arguments: Any) -> float:
    jax.block_until_ready(call(*arguments))  # compiles
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        taken.append(time.perf_counter() - began)
    return min(taken)
