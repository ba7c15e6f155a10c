"""How weights are sharded over a mesh of devices: its three axes, and rules for `PartitionSpec`s.

* `data`: every device has the whole model, and its own rows of the batch.
* `fsdp`: every device has its own rows, and a part of every weight, which is gathered where it is
  used (ZeRO, stage 3: Rajbhandari et al. 2020, arXiv 1910.02054).
* `tensor`: every device has a part of every product, and of the tokens between products (Shoeybi et
  al. 2019, arXiv 1909.08053; Korthikanti et al. 2022, arXiv 2205.05198).

A table of rules gives the specs of a model's own weights. The shardings of adapters, quantised
weights and optimiser states follow from it (`lora_jax.sharding.layout`).
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from lora_jax.base import WeightUse
from lora_jax.messages import nearest
from lora_jax.partition import matches

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that the rows of a batch are spread over."""
SMALL = 2**14
"""`automatic` leaves a parameter with fewer numbers than this whole on every device."""

Rules = Sequence[tuple[str, PartitionSpec]]
"""Patterns as for targets (see `partition.matches`); the first that matches decides. A spec names
one mesh axis, several, or None for each axis of the array."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`, in the order of the devices' links.

    Args:
      data, fsdp, tensor: the sizes; one of them may be -1, for all remaining devices.
      devices: all of `jax.devices()` by default.

    Raises:
      ValueError: sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes((data, fsdp, tensor), len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # mesh axes share an axis of TPUs' links: 16 and 4 on 8x8
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=kinds)


def mesh_sizes(sizes: Sequence[int], devices: int, where: str = "mesh ") -> tuple[int, ...]:
    """The sizes of a mesh's axes, with -1 replaced.

    Args:
      where: what messages have before the sizes.

    Raises:
      ValueError: sizes that do not make up the number of devices.
    """
    said = where + ",".join(map(str, sizes))
    if len(sizes) != len(AXES) or sum(size == -1 for size in sizes) > 1:
        such = ",".join(map(str, (*sizes, 1, 1, 1)[: len(AXES)]))
        such = f", such as {such}" if len(sizes) < len(AXES) else ""
        raise ValueError(f"{said}: expected the sizes of {', '.join(AXES)}, at most one -1{such}")
    if any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"{said}: sizes must be at least 1, or -1 for what is left")
    known = math.prod(size for size in sizes if size != -1)
    filled = tuple(devices // known if size == -1 else size for size in sizes)
    if math.prod(filled) != devices:
        needs = f"a multiple of {known}" if -1 in sizes else known
        there = "is 1" if devices == 1 else f"are {devices}"
        raise ValueError(f"{said} needs {needs} devices; there {there}")
    return filled


def specs_of(
    rules: Rules, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh
) -> dict[str, PartitionSpec]:
    """The spec of every parameter, from a table of rules.

    An axis that the mesh does not divide evenly stays whole, or is cut only by the first of several
    mesh axes (see `fitting`); a warning names it.

    Raises:
      ValueError: no rule matches a parameter; or a spec has more entries than its array has axes,
        names an axis that the mesh lacks, or names one axis twice.
    """
    found, uneven = {}, []
    for path, shape in shapes.items():
        spec = next((spec for pattern, spec in rules if matches(pattern, path)), None)
        if spec is None:
            near = nearest(path, [pattern for pattern, _ in rules])
            raise ValueError(f"no rule says how '{path}' is sharded; nearest: {near}")
        if len(spec) > len(shape):
            raise ValueError(f"'{path}' has {len(shape)} axes, but its rule {spec} has more")
        if unknown := [name for name in _names(spec) if name not in mesh.axis_names]:
            raise ValueError(
                f"'{path}': the mesh has no axis '{unknown[0]}', only {', '.join(mesh.axis_names)}"
            )
        if twice := [name for name, count in Counter(_names(spec)).items() if count > 1]:
            raise ValueError(f"'{path}': its rule {spec} names '{twice[0]}' twice")
        found[path] = fitting(spec, shape, mesh)
        if _names(found[path]) != _names(spec):
            uneven.append(f"{path} {shape} by {spec}")
    if uneven:
        sizes = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))
        warnings.warn(
            f"left whole, or cut into fewer parts, as {sizes} does not divide them: {uneven}",
            stacklevel=2,
        )
    return found


def fitting(
    spec: Sequence[Any] | PartitionSpec, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """A spec with one entry for each axis, without mesh axes that do not divide it evenly.

    If several mesh axes cut one axis, the last ones are removed first.
    """
    entries = tuple(spec) + (None,) * (len(shape) - len(spec))
    return PartitionSpec(*(_even(*each, mesh) for each in zip(entries, shape, strict=True)))


def _even(entry: Any, size: int, mesh: Mesh) -> Any:
    names = axes_of(entry)
    while size % part_count(names, mesh):
        names = names[:-1]
    if names == axes_of(entry):
        return entry
    return names if len(names) > 1 else names[0] if names else None


def part_count(entry: Any, mesh: Mesh) -> int:
    """How many parts an entry of a spec cuts an axis into."""
    return math.prod(mesh.shape[name] for name in axes_of(entry))


def automatic(uses: Mapping[str, WeightUse], mesh: Mesh) -> dict[str, PartitionSpec]:
    """Specs for a model that has no table, from how it uses its parameters.

    `tensor` cuts a matrix that widens along its outputs, and one that narrows along its inputs;
    `fsdp` cuts the other axis. So nothing is exchanged between two such matrices in sequence. Both
    cut a square matrix, which may be either kind, along its outputs, and any other large parameter
    along its longest axis. A table that knows which product follows which needs less communication;
    the results are the same.

    (If `fsdp` cuts all inputs and `tensor` all outputs, jax 0.10.2 and 0.12.0.1 compute wrong
    gradients of vectors in scanned layers on a mesh of three axes, also for plain JAX functions.
    `lora_jax.compiled.audit` stops a run with such a table.)
    """
    return {path: _automatic(use, mesh) for path, use in uses.items()}


def _automatic(use: WeightUse, mesh: Mesh) -> PartitionSpec:
    entries: list[Any] = [None] * len(use.shape)
    if math.prod(use.shape) < SMALL:
        return PartitionSpec(*entries)
    inputs, outputs = use.inputs, use.outputs
    if any(each.kind == "convolution" for each in use.uses):  # channels, not places
        inputs = tuple(sorted(inputs, key=lambda axis: -use.shape[axis]))
    if not (inputs and outputs):
        every = sorted(range(len(use.shape)), key=lambda axis: -use.shape[axis])
        wanted = [(("fsdp", "tensor"), every), (("fsdp",), every)]
    elif use.matrix[0] == use.matrix[1]:
        wanted = [(("fsdp", "tensor"), (*outputs, *inputs)), (("fsdp",), (*outputs, *inputs))]
    else:
        long, short = sorted((inputs, outputs), key=use.size, reverse=True)
        wanted = [(("tensor",), long), (("fsdp",), short)]
    for names, axes in wanted:
        for axis in axes:
            free = entries[axis] is None and not set(names) & set(_names(entries))
            if free and use.shape[axis] % part_count(names, mesh) == 0:
                entries[axis] = names if len(names) > 1 else names[0]
    return PartitionSpec(*entries)


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a spec names."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _names(spec: Sequence[Any] | PartitionSpec) -> list[str]:
    return [name for entry in spec for name in axes_of(entry)]


def said_by_all(value: Any) -> list[Any]:
    """Give every process the JSON values of all processes, in order; all must call this."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    rows = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
