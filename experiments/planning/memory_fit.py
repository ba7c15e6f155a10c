"""Whether a training step fits into the memory of the devices of a topology, by compiling it."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from experiments.planning.abstract_step import Outline, outline
from experiments.planning.topologies import GIB, Topology, devices_of
from lora_jax.compiled.collectives import Collective, collectives
from lora_jax.partition import flatten
from lora_jax.sharding.mesh import ROWS, make_mesh, parts
from lora_jax.uses import WeightUse

# CPUs have no products of bfloat16: their compiler converts weights to float32, and would do so
# with all layers' at once, before the loop over them. A TPU or GPU does nothing of the kind.
SIMULATED: dict[str, str | bool] = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
"""Options of the CPU's compiler, for temporaries that are more like those of other devices."""


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Bytes of one device, of what lies there from step to step."""

    weights: int
    """Frozen, adapted or not."""
    adapters: int
    """All that is trained: factors, and weights that are trained in full."""
    optimizer: int
    other: int
    """Constants of adapters, what a variant remembers, the batch."""

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.optimizer + self.other


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of one token, by analysis: a product's forward pass is 2 for each weight it multiplies by.

    Its backward pass is as much by the weight's transpose, and as much again where the weight is
    trained: 4N for N frozen weights, 6n for n trained ones (Kaplan et al. 2020, arXiv 2001.08361,
    section 2.1). Attention scores, norms and the loss are left out. (XLA's own count is of no use
    here: it takes the body of a loop over layers once.)
    """

    frozen: float
    """4N."""
    trained: float
    """6n."""
    recomputed: float
    """2N + 2n where layers are computed again in the backward pass: at most, as a layer's last
    product is of no use there."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a training step asks of one device of a topology, in bytes, and whether it has that."""

    topology: Topology
    mesh: tuple[int, ...]
    rows: int
    """Of a batch, on each part that `data` and `fsdp` make of it, at a time."""
    tokens: int
    """Of a row, at most."""
    arrays: Arrays
    flops: Flops
    accumulate: int = 1
    """How many times a step takes so many rows."""
    asked: int = 0
    """The batch that the config has; 0 where that is not known."""
    loading: int = 0
    """Bytes of one device before the first step: weights as they are read, what is quantised of
    them, and adapters; without what quantising takes for itself."""
    saving: int = 0
    """Bytes of the copy of what is trained, and of the optimiser's, that a checkpoint is written
    from while training goes on."""
    temporaries: int | None = None
    """Gradients, activations and whatever else the program sets aside; None if it has none."""
    code: int = 0
    collectives: tuple[Collective, ...] = ()
    seconds: float = 0.0
    """To compile."""
    refused: str = ""
    """What the compiler says of a program that does not fit."""

    @property
    def total(self) -> int | None:
        """With the program; None if there is none."""
        if self.temporaries is None:
            return None
        return self.arrays.total + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether loading, every step and saving beside it do."""
        whole = None if self.total is None else max(self.total + self.saving, self.loading)
        return whole is not None and whole <= self.topology.capacity

    @property
    def hopeless(self) -> bool:
        """Whether it cannot fit, whatever the program is."""
        least = max(self.arrays.total + self.saving, self.loading)
        return least > self.topology.capacity

    @property
    def why_not(self) -> str:
        """One sentence on what does not fit; empty where all does."""
        if self.fits:
            return ""
        gib = f"{self.topology.capacity / GIB:.2f} GiB that a device of {self.topology} has"
        if self.arrays.total > self.topology.capacity:
            return (
                f"Does not fit: weights, adapters and optimiser alone are "
                f"{self.arrays.total / GIB:.2f} GiB a device, more than the {gib}."
            )
        if self.loading > self.topology.capacity:
            reads = f"weights are {self.loading / GIB:.2f} GiB a device as they are read"
            return f"Does not fit: {reads}, before they are quantised, more than the {gib}."
        if self.total is not None and self.total > self.topology.capacity:
            asks = f"it asks for {self.total / GIB:.2f} GiB a device"
            return f"Does not fit: {asks}, more than the {gib}."
        if self.total is not None or self.hopeless:
            whole = (self.total or self.arrays.total) + self.saving
            asks = f"while it saves, it asks for {whole / GIB:.2f} GiB a device"
            return f"Does not fit: {asks}, more than the {gib}."
        return f"Does not fit: {self.refused}, more than the {gib}."


def fit(
    config: dict[str, Any], chosen: Topology, mesh: tuple[int, ...], rows: int | None = None
) -> Fit:
    """Compile the training step of a config for a topology.

    Args:
      mesh: the sizes of data, fsdp and tensor.
      rows: as for `outline`.

    Raises:
      ValueError, FileNotFoundError: a config or a mesh that cannot be.
    """
    found = outline(config, make_mesh(*mesh, devices=devices_of(chosen)), rows)
    empty = _uncompiled(found, chosen)
    if empty.hopeless:
        return empty  # before minutes go by
    lowered = found.lower("tpu" if chosen.ahead else "cpu")
    began = time.perf_counter()
    try:
        compiled = lowered.compile(None if chosen.ahead else SIMULATED)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        took = time.perf_counter() - began
        return dataclasses.replace(empty, seconds=took, refused=refusal(str(error)))
    took = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    # What is donated is counted among the arguments; what is not, once more as an output.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dataclasses.replace(
        empty,
        temporaries=memory.temp_size_in_bytes + max(outputs, 0),
        code=memory.generated_code_size_in_bytes,
        collectives=tuple(collectives(compiled.as_text() or "")),
        seconds=took,
    )


def arrays_of(found: Outline) -> Arrays:
    """What lies on one device from step to step."""
    state, frozen = found.state, found.frozen
    rest = frozen.constants, frozen.shared, state.variant_state, state.step, found.batch
    return Arrays(
        weights=on_one_device(frozen.base),
        adapters=on_one_device(state.trainable),
        optimizer=on_one_device(state.opt_state),
        other=on_one_device(rest),
    )


def loading_of(found: Outline) -> int:
    """What lies on one device before the first step: weights are quantised once all are read."""
    where, _ = flatten(found.layout.params)
    dense = [
        jax.ShapeDtypeStruct(use.shape, use.dtype, sharding=where[path])
        for path, use in found.layout.uses.items()
    ]
    stored = [leaf for leaf in found.frozen.base.values() if isinstance(leaf, dict)]
    return on_one_device((dense, stored, found.state.trainable))


def on_one_device(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings, of its part on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def flops_of(found: Outline) -> Flops:
    """Of one token of a row, in a training step."""
    trainable = found.state.trainable
    products = {path: _multiplied(use) for path, use in found.layout.uses.items()}
    full = sum(products[path] for path in trainable["params"])
    adapters = sum(leaf.size for each in trainable["adapters"].values() for leaf in each.values())
    frozen = sum(products.values()) - full
    trained = full + adapters
    again = 2 * (frozen + trained) if found.config["model"].get("remat") else 0
    return Flops(frozen=4.0 * frozen, trained=6.0 * trained, recomputed=float(again))


def _multiplied(use: WeightUse) -> int:
    """How many weights of a parameter each token is multiplied by."""
    products = [each for each in use.uses if each.kind in ("product", "transposed product")]
    return math.prod(use.shape) if products and use.is_matrix else 0


def _uncompiled(found: Outline, chosen: Topology) -> Fit:
    mesh, accumulate = found.layout.mesh, found.config["train"]["accumulate"]
    rows, tokens = found.batch["input_ids"].shape
    return Fit(
        topology=chosen,
        mesh=tuple(mesh.devices.shape),
        rows=rows // (accumulate * parts(ROWS, mesh)),
        tokens=tokens,
        arrays=arrays_of(found),
        flops=flops_of(found),
        accumulate=accumulate,
        asked=found.config["train"]["batch_size"],
        loading=loading_of(found),
        saving=on_one_device(found.state),
    )


def refusal(text: str) -> str:
    """What an error of libtpu's says a program would need, in a few words.

    Its "HLO temporaries" have what lies there anyway among them.
    """
    sizes = re.search(
        r"HLO temporaries \(([\d.]+)([KMGT])\)|[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text
    )
    if sizes is None:
        return "the compiler finds no way to run it"
    number, unit = (each for each in sizes.groups() if each is not None)
    return f"the program needs {number} {unit}iB a device"
