"""Derive the shardings of adapters, quantised weights, states and batches from a model's weights.

layout = lay_out(adapted, mesh, rules, params, ids)    # arrays or shapes
trainable, frozen = layout.init(jax.random.key(0), params, ids)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.base import Seen, Uses, WeightUse
from lora_jax.partition import flatten, split_arrays
from lora_jax.quantization.quantize import Storage, Stored, require_storable
from lora_jax.sharding.mesh import ROWS, Rules, automatic, axes_of, fitting, specs_of
from lora_jax.transform.adapt import Adapted, init_shapes
from lora_jax.transform.placement import Frozen, Placement, group_of
from lora_jax.transform.target_patterns import SomeLayers
from lora_jax.variant import Base

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The sharding of every array of an adapted function (see `lay_out`)."""

    adapted: Adapted
    mesh: Mesh
    uses: Uses
    params: PyTree
    """Shardings of the user's own tree; None where it has a setting."""
    trainable: PyTree
    frozen: Frozen
    """Shardings in the place of arrays, in the structure that `init` gives; so is `trainable`."""

    @property
    def rows(self) -> NamedSharding:
        """The sharding of batches, whose rows are spread over `data` and `fsdp`."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of arrays that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def place(self, params: PyTree) -> PyTree:
        """Put the parameters on their devices; those already there are not copied."""
        return jax.tree.map(
            lambda leaf, to: leaf if to is None else jax.device_put(leaf, to),
            params,
            self.params,
            is_leaf=lambda leaf: leaf is None,
        )

    def init(
        self,
        key: Array,
        params: PyTree,
        /,
        *args: Any,
        seen: Mapping[str, Seen] | None = None,
        **kwargs: Any,
    ) -> tuple[PyTree, Frozen]:
        """Run `adapted.init`; each device makes its own part of the arrays.

        Frozen weights that are not quantised are those of `params`, not copied. `seen` is that
        which `lay_out` was given.

        Raises:
          ValueError: a weight that is to be quantised has numbers that cannot be stored.
        """
        params = self.place(params)
        arrays, rebuild = split_arrays(params)
        leaves, _ = flatten(params)
        made = {each.use.path for each in self.frozen.spec.placements if each.storage is not None}
        for path in made:  # they are traced below, and cannot be checked there
            require_storable(path, leaves[path])

        def new(key: Array, arrays: list[Any]) -> tuple[PyTree, Frozen]:
            trainable, frozen = self.adapted.init(key, rebuild(arrays), *args, seen=seen, **kwargs)
            return trainable, _with_base(self.gathering(frozen), made)

        shardings = self.trainable, _with_base(self.frozen, made)
        trainable, frozen = jax.jit(new, out_shardings=shardings)(key, arrays)
        base = {path: frozen.base.get(path, leaves.get(path)) for path in self.frozen.base}
        return trainable, dataclasses.replace(frozen, base=base)

    def shapes(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> Any:
        """What `init` would give, as shapes with their shardings."""
        found = init_shapes(self.adapted, key, params, *args, **kwargs)
        given = found[0], self.gathering(found[1])
        return jax.tree.map(sharded_shape, given, (self.trainable, self.frozen))

    def like(self, tree: PyTree) -> PyTree:
        """Shardings of a tree that contains trainables' shapes, such as an optimiser's state.

        A leaf whose path ends in a trainable's path, and which has as many axes, is sharded like
        that. Every device holds any other leaf whole.
        """
        known = dict(jax.tree_util.tree_leaves_with_path(self.trainable))
        # A variant's own state has `{path: {name: array}}` of its adapters alone.
        known |= {keys[1:]: each for keys, each in known.items() if len(keys) == 3}

        def find(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
            like = known.get(keys[-3:]) or known.get(keys[-2:])
            if like is None or len(like.spec) != len(leaf.shape):
                return self.everywhere
            return NamedSharding(self.mesh, fitting(like.spec, leaf.shape, self.mesh))

        return jax.tree_util.tree_map_with_path(find, tree)

    def gathering(self, frozen: Frozen) -> Frozen:
        """`frozen` with quantised weights that devices exchange as stored, and dequantise after."""
        return dataclasses.replace(frozen, spec=self.frozen.spec)


def lay_out(
    adapted: Adapted,
    mesh: Mesh,
    rules: Rules | None,
    params: PyTree,
    /,
    *args: Any,
    seen: Mapping[str, Seen] | None = None,
    **kwargs: Any,
) -> Layout:
    """The sharding of every array of an adapted function on a mesh.

    A factor's axis that grows with its matrix's input or output axis is cut like that axis. To find
    such axes, factors are made for matrices of other sizes. Quantised weights are treated alike.

    Args:
      rules: for the model's own weights; if None, `mesh.automatic` chooses.
      params: arrays, or `jax.ShapeDtypeStruct`s: their values are not read.
      *args: an example of the function's inputs.
      seen: for initialisations from data, what `adapted.gather` has found.
      **kwargs: further inputs.

    Raises:
      ValueError: no rule matches a parameter, or `adapted.init` raises it.
    """
    uses = adapted.uses(params, *args, **kwargs)
    shapes = {path: use.shape for path, use in uses.items()}
    specs = automatic(uses, mesh) if rules is None else specs_of(rules, shapes, mesh)
    trainable, frozen = init_shapes(adapted, jax.random.key(0), params, *args, seen=seen, **kwargs)
    factors = {p.use.path: _factors(p, specs[p.use.path]) for p in frozen.spec.adapted}
    base: dict[str, Any] = {path: specs[path] for path in frozen.base}
    placements = []
    for each in frozen.spec.placements:
        if each.storage is not None:
            path, arrays = each.use.path, frozen.base[each.use.path]
            cut = _stored(each, specs[path])
            base[path] = {name: fitting(cut[name], arrays[name].shape, mesh) for name in cut}
            storage = _gathered(each, specs[path], base[path], mesh)
            each = dataclasses.replace(each, storage=storage)
        placements.append(each)
    spec = dataclasses.replace(frozen.spec, placements=tuple(placements))
    adapters = {path: each[0] for path, each in factors.items()}
    constants = {path: each[1] for path, each in factors.items()}

    def shardings(shapes: PyTree, specs: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, spec: NamedSharding(mesh, fitting(spec, leaf.shape, mesh)), shapes, specs
        )

    whole = jax.tree.map(lambda _: PartitionSpec(), (trainable.get("shared", {}), frozen.shared))
    trained = {"shared": whole[0]} if "shared" in trainable else {}
    trained |= {"adapters": adapters, "params": {path: specs[path] for path in trainable["params"]}}
    own = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    return Layout(
        adapted=adapted,
        mesh=mesh,
        uses=uses,
        params=frozen.spec.treedef.unflatten([own.get(path) for path in frozen.spec.paths]),
        trainable=shardings(trainable, trained),
        frozen=Frozen(
            base=shardings(frozen.base, base),
            constants=shardings(frozen.constants, constants),
            spec=spec,
            shared=shardings(frozen.shared, whole[1]),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Gathered(Storage):
    """A storage whose arrays are gathered over `fsdp` before they are dequantised, never after.

    By itself, a compiler would gather dense weights, which are four times as large.
    """

    inner: Storage
    shardings: tuple[tuple[str, NamedSharding], ...]
    """The shardings of one matrix's arrays when they are used."""
    dense: NamedSharding
    """The sharding of the dequantised matrix."""

    def store(self, matrix: Array) -> Stored:
        return self.inner.store(matrix)

    def load(self, stored: Stored, size: tuple[int, int], dtype: Any) -> Array:
        constrain = jax.lax.with_sharding_constraint
        gathered = {name: constrain(stored[name], sharding) for name, sharding in self.shardings}
        return constrain(self.inner.load(gathered, size, dtype), self.dense)

    def take(self, stored: Stored, rows: Array, size: tuple[int, int], dtype: Any) -> Array:
        return self.inner.take(stored, rows, size, dtype)


def _gathered(
    placement: Placement, spec: PartitionSpec, stored: Mapping[str, PartitionSpec], mesh: Mesh
) -> Gathered:
    use, depth = placement.use, len(placement.use.stack)
    entries = tuple(spec) + (None,) * (len(use.shape) - len(spec))
    sides = _folded(entries, use.inputs), _folded(entries, use.outputs)

    def used(entries: Sequence[Any], shape: tuple[int, ...]) -> NamedSharding:
        kept = [tuple(name for name in axes_of(entry) if name not in ROWS) for entry in entries]
        whole = [each[0] if len(each) == 1 else each or None for each in kept]
        return NamedSharding(mesh, fitting(whole, shape, mesh))

    assert placement.storage is not None
    arrays = tuple(
        (name, used(each[depth:], (0,) * len(each[depth:]))) for name, each in stored.items()
    )
    return Gathered(placement.storage, arrays, used(sides, use.matrix))


def _factors(placement: Placement, spec: PartitionSpec) -> tuple[dict, dict]:
    """The specs of an adapter's trainables and of its constants, by name."""
    use, variant = placement.use, group_of(placement)

    def make(inputs: int, outputs: int) -> Any:
        dense = jax.ShapeDtypeStruct((inputs, outputs), use.dtype)
        seen = variant.needs and variant.needs.shapes((inputs, outputs), use.dtype)
        base = Base(dense, "io", seen=seen)  # type: ignore[arg-type]
        return jax.eval_shape(variant.init, jax.random.key(0), base)

    trainable, constants = _following(make, use, spec)
    if isinstance(placement.variant, SomeLayers):
        constants["active"] = PartitionSpec()
    return trainable, constants


def _stored(placement: Placement, spec: PartitionSpec) -> dict[str, PartitionSpec]:
    """The specs of the arrays that a quantised weight is stored in."""
    storage, use = placement.storage, placement.use
    assert storage is not None

    def make(inputs: int, outputs: int) -> Any:
        return jax.eval_shape(storage.store, jax.ShapeDtypeStruct((inputs, outputs), use.dtype))

    return _following(make, use, spec)


def _following(make: Callable[[int, int], Any], use: WeightUse, spec: PartitionSpec) -> Any:
    """Specs of arrays made from a matrix: an axis that grows with a matrix axis is cut like it.

    Args:
      make: gives the arrays' shapes for a matrix (in, out); in the specs, stacked axes come first.
    """
    entries = tuple(spec) + (None,) * (len(use.shape) - len(spec))
    stack = tuple(entries[axis] for axis in use.stack)
    cut = {"in": _folded(entries, use.inputs), "out": _folded(entries, use.outputs)}
    inputs, outputs = use.matrix

    def follow(own: Any, wider: Any, taller: Any) -> PartitionSpec:
        found = list(stack)
        for size, with_in, with_out in zip(own.shape, wider.shape, taller.shape, strict=True):
            grows = [side for side, n in (("in", with_in), ("out", with_out)) if n != size]
            side = cut[grows[0]] if len(grows) == 1 else None
            found.append(None if side in found else side)  # two axes may grow with one (RandLoRA)
        return PartitionSpec(*found)

    sizes = (inputs, outputs), (2 * inputs, outputs), (inputs, 2 * outputs)
    return jax.tree.map(follow, *(make(*each) for each in sizes))


def _folded(entries: tuple[Any, ...], axes: tuple[int, ...]) -> Any:
    """How axes that form one matrix axis are cut: like the first, if no other is cut."""
    first, *rest = [entries[axis] for axis in axes] or [None]
    return None if any(entry is not None for entry in rest) else first


def sharded_shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array, with its sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_base(frozen: Frozen, paths: set[str]) -> Frozen:
    """`frozen` with only the base leaves of some paths."""
    kept = {path: leaf for path, leaf in frozen.base.items() if path in paths}
    return dataclasses.replace(frozen, base=kept)
