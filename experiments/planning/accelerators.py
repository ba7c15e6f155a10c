"""What accelerators can do at most: products, traffic with their memory, and its size.

The numbers of GPUs are those of dense products with sums in float32:

* H100 SXM: NVIDIA H100 data sheet (half of the numbers "with sparsity").
* A100 80GB SXM: NVIDIA A100 data sheet.
* RTX 4090: NVIDIA Ada GPU architecture white paper, appendix A.
* TPU v5e, v5p: https://cloud.google.com/tpu/docs/v5e and /v5p; their memory is what libtpu lets
  a program use (`experiments.planning.topologies`).

JAX multiplies float32 as TF32 on these GPUs, and as one product of bfloat16 on TPUs, by default.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.planning.topologies import GIB, KINDS
from lora_jax.sharding import memory
from lora_jax.suggest import nearest_or_all

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
    name = {"4090": "rtx4090"}.get(name, name)
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
