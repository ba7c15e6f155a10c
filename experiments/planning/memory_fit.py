"""Compile a training step to find out whether it fits in the memory of a topology's devices.

`fit` compiles, and `show` makes tables and sentences of what is found.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from rich.console import Group
from rich.table import Table

from configs.settings import RunConfig
from experiments.planning.abstract_step import AbstractStep
from experiments.planning.topologies import GIB, Topology, devices_of
from lora_jax.messages import count
from lora_jax.partition import flatten
from lora_jax.sharding.mesh import AXES, ROWS, make_mesh, part_count

# CPUs have no matrix products in bfloat16, so their compiler converts weights to float32. It would
# convert those of all layers at once, before the loop over layers. TPUs and GPUs do not do this.
SIMULATION_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion"
}
"""Options of the CPU's compiler that make its temporaries more like those of other devices."""

SIMULATION_NOTE = (
    "Temporaries are those of a program for the CPU, which keeps\n"
    "float32 where a TPU's or GPU's has bfloat16: take them as a rough guide."
)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Bytes of the arrays that stay on one device between steps."""

    weights: int
    """Frozen weights, adapted or not."""
    adapters: int
    """All trained arrays: factors of adapters, and weights that are trained in full."""
    optimizer: int
    """The state of the optimiser, and the moving average of the trained arrays, if there is one."""
    other: int
    """Constants and shared arrays of adapters, the variants' state, the step, the batch."""

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.other


@dataclasses.dataclass(frozen=True)
class Fit:
    """The memory that a training step needs on one device, in bytes, and whether it fits."""

    topology: Topology
    mesh: tuple[int, ...]
    rows: int
    """Rows of each shard of a batch at a time; `data` and `fsdp` cut a batch into shards."""
    tokens: int
    """The most tokens of a row."""
    arrays: Arrays
    accumulate: int = 1
    """How many parts of this many rows a step takes, one after another."""
    asked: int = 0
    """The batch size in the config; 0 if it is not known."""
    loading: int = 0
    """Bytes of one device before the first step: weights as read, quantised copies, adapters.

    The temporaries of the quantisation itself are not included.
    """
    saving: int = 0
    """Bytes of the copy of the training state from which a checkpoint is written meanwhile."""
    temporaries: int | None = None
    """Gradients, activations and other buffers of the program; None if it was not compiled."""
    code: int = 0
    seconds: float = 0.0
    """The seconds that compilation took."""
    refused: str = ""
    """The compiler's message about a program that does not fit."""

    @property
    def total(self) -> int | None:
        """Bytes of the arrays, the temporaries and the program; None if it was not compiled."""
        if self.temporaries is None:
            return None
        return self.arrays.total + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether loading fits in memory, and a step together with the copy for a checkpoint."""
        whole = None if self.total is None else max(self.total + self.saving, self.loading)
        return whole is not None and whole <= self.topology.capacity

    @property
    def hopeless(self) -> bool:
        """Whether the arrays alone do not fit, whatever the program needs."""
        least = max(self.arrays.total + self.saving, self.loading)
        return least > self.topology.capacity

    @property
    def why_not(self) -> str:
        """One sentence on what does not fit; empty if everything fits."""
        if self.fits:
            return ""
        reasons = (
            (self.arrays.total, "weights, adapters and optimiser alone are {} a device"),
            (self.loading, "weights are {} a device as they are read, before they are quantised"),
            (self.total or 0, "it asks for {} a device"),
            (
                (self.total or self.arrays.total) + self.saving,
                "while it saves, it asks for {} a device",
            ),
        )
        capacity = self.topology.capacity
        large = (said.format(f"{n / GIB:.2f} GiB") for n, said in reasons if n > capacity)
        why = next(large, self.refused)
        more = f"more than the {capacity / GIB:.2f} GiB that a device of {self.topology} has"
        return f"Does not fit: {why}, {more}."


def fit(config: RunConfig, chosen: Topology, mesh: tuple[int, ...], rows: int | None = None) -> Fit:
    """Compile the training step of a config for a topology.

    If the arrays alone do not fit, nothing is compiled.

    Args:
      mesh: the sizes of data, fsdp and tensor.
      rows: as for `AbstractStep.of`.

    Raises:
      ValueError, FileNotFoundError: a config or a mesh that cannot work.
    """
    found = AbstractStep.of(config, make_mesh(*mesh, devices=devices_of(chosen)), rows)
    empty = _uncompiled(found, chosen)
    if empty.hopeless:
        return empty  # saves minutes of compilation
    platform = "tpu" if chosen.ahead else "cpu"
    lowered = found.traced(found.batch).lower(lowering_platforms=(platform,))
    began = time.perf_counter()
    try:
        compiled = lowered.compile(None if chosen.ahead else SIMULATION_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.perf_counter() - began
        return dataclasses.replace(empty, seconds=took, refused=refusal(str(error)))
    took = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    # Donated arguments hold their outputs; only the other outputs need memory of their own.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dataclasses.replace(
        empty,
        temporaries=memory.temp_size_in_bytes + max(outputs, 0),
        code=memory.generated_code_size_in_bytes,
        seconds=took,
    )


def arrays_of(found: AbstractStep) -> Arrays:
    """Bytes of the arrays that stay on one device between steps."""
    state, frozen = found.state, found.frozen
    rest = frozen.constants, frozen.shared, state.variant_state, state.step, found.batch
    return Arrays(
        weights=on_one_device(frozen.base),
        adapters=on_one_device(state.trainable),
        optimizer=on_one_device((state.opt_state, state.average)),
        other=on_one_device(rest),
    )


def loading_of(found: AbstractStep) -> int:
    """Bytes on one device before the first step; weights are quantised once all are read."""
    where, _ = flatten(found.on_mesh.params)
    dense = [
        jax.ShapeDtypeStruct(use.shape, use.dtype, sharding=where[path])
        for path, use in found.on_mesh.uses.items()
    ]
    stored = [leaf for leaf in found.frozen.base.values() if isinstance(leaf, dict)]
    return on_one_device((dense, stored, found.state.trainable))


def on_one_device(tree: Any) -> int:
    """Bytes of the part of a tree of shapes with shardings that is on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _uncompiled(found: AbstractStep, chosen: Topology) -> Fit:
    mesh, accumulate = found.on_mesh.mesh, found.config.train.accumulate
    rows, tokens = found.batch["input_ids"].shape
    return Fit(
        topology=chosen,
        mesh=tuple(mesh.devices.shape),
        rows=rows // (accumulate * part_count(ROWS, mesh)),
        tokens=tokens,
        arrays=arrays_of(found),
        accumulate=accumulate,
        asked=found.config.train.batch_size,
        loading=loading_of(found),
        saving=on_one_device(found.state),
    )


def refusal(text: str) -> str:
    """The memory that a program needs according to an error of libtpu, in a few words.

    The "HLO temporaries" in the error include the arrays that stay there between steps.
    """
    sizes = re.search(
        r"HLO temporaries \(([\d.]+)([KMGT])\)|[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text
    )
    if sizes is None:
        return "the compiler finds no way to run it"
    number, unit = (each for each in sizes.groups() if each is not None)
    return f"the program needs {number} {unit}iB a device"


# ---- what a plan prints --------------------------------------------------------------------------


def show(found: Fit) -> Group:
    """Show the memory of a step, and whether it fits."""
    return Group(heading(found), memory(found), verdict(found))


def heading(found: Fit) -> str:
    """The devices, the mesh and the batch, a line for each."""
    chosen = found.topology
    mesh = " x ".join(f"{name} {size}" for name, size in zip(AXES, found.mesh, strict=True))
    compiled = "ahead of time" if chosen.ahead else "on simulated devices of the CPU"
    return (
        f"{chosen}: {count(chosen.devices, 'device')} of {chosen.capacity / GIB:.2f} GiB, "
        f"compiled {compiled}\nmesh: {mesh}\nbatch: {rows(found)}"
    )


def rows(found: Fit) -> str:
    """The rows of a batch, and how shards and accumulation make them up."""
    shards = found.mesh[0] * found.mesh[1]
    batch = found.rows * shards * found.accumulate
    times = f"; {found.accumulate} times" if found.accumulate > 1 else ""
    parts = f"{count(shards, 'shard')} by data x fsdp"
    each = f"{count(found.rows, 'row')} a shard, {parts}{times}"
    other = f"\n  not the config's {found.asked}: train with --config.train.batch_size={batch}"
    own = "" if found.asked in (0, batch) else other
    return f"{batch} x {found.tokens} tokens a step ({each}){own}"


def memory(found: Fit) -> Table:
    """A table of the memory of one device, with a row for each part."""
    made = Table("", title_justify="left")
    made.add_column("GiB a device", justify="right")
    parts = {
        "weights": found.arrays.weights,
        "adapters" if found.arrays.weights else "trained": found.arrays.adapters,
        "optimiser": found.arrays.optimizer,
        "other": found.arrays.other,
        "temporaries": found.temporaries,
        "program": found.code if found.temporaries is not None else None,
    }
    saves = None if found.total is None else found.total + found.saving
    whole = {
        "total": found.total,
        "while it saves": saves,
        "while it loads": found.loading,
        "capacity": found.topology.capacity,
    }
    for name, each in parts.items():
        made.add_row(name, _gib(each), end_section=name == "program")
    for name, each in whole.items():
        made.add_row(name, _gib(each))
    return made


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def verdict(found: Fit) -> str:
    """One sentence on whether the step fits, and a caution if devices were simulated."""
    took = f"compiled in {found.seconds:.0f} s" if found.seconds else "not compiled"
    simulated = "" if found.topology.ahead or found.total is None else f"\n{SIMULATION_NOTE}"
    if not found.fits or found.total is None:
        return f"{found.why_not} ({took}){simulated}"
    share = found.total / found.topology.capacity
    return f"Fits, in {share:.0%} of a device's memory ({took}).{simulated}"
