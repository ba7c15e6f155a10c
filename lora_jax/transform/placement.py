"""Frozen weights as data: where each one is, how it is stored, and what adapts it."""

import dataclasses
import functools
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from lora_jax.base import Uses, WeightUse
from lora_jax.files.arrays import is_key, type_name
from lora_jax.partition import is_array
from lora_jax.quantization.quantize import Quantized, Storage
from lora_jax.transform import jaxprs, target_patterns
from lora_jax.transform.adapted_weight import Shared, Weight, over_stack, with_shared
from lora_jax.transform.target_patterns import Assigned, Rule, SomeLayers
from lora_jax.transform.views import View
from lora_jax.variant import Base, Factors, TrainingWarning, Variant, wide

PyTree = Any
Trainable = dict[str, dict[str, Any]]
"""`{"adapters": {path: {name: array}}, "params": {path: array}}`

With variants whose matrices share trained arrays also `"shared": {number: {name: array}}`, where
the number, as text, is the variant's place in `AdaptedSpec.groups`.
"""


@dataclasses.dataclass(frozen=True)
class Unadapted(Variant):
    """No adapter: the variant of a weight that is only quantised."""

    adapts: ClassVar[bool] = False

    def weight(self, base: Base, factors: Factors) -> Array:
        return base.dense()

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        return base.dot(x)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return base.dot_t(x)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        return base.take(rows)

    def count(self, shape: tuple[int, int]) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """One weight that is adapted, or stored quantised, or both; and how the function uses it."""

    use: WeightUse
    variant: Variant
    layers: Assigned
    """The variant that was asked for, or one for each layer of a stack if they differ."""
    storage: Storage | None = None
    """How the weight is stored; None if it is stored densely, as it came."""
    ranks: tuple[int, ...] | None = None
    """The rank of each matrix after pruning; None without pruning."""
    bias: str | None = None
    """The path of the layer's bias, if the variant adapts it."""

    @property
    def adapts(self) -> bool:
        return not isinstance(self.variant, Unadapted)

    def bare(self) -> "Placement":
        """The weight without its adapter, stored as it is."""
        none = Unadapted()
        return dataclasses.replace(self, variant=none, layers=none, ranks=None, bias=None)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The (in, out) shape of every matrix that has an adapter."""
        layers = self.layers if isinstance(self.layers, tuple) else (self.layers,)
        number = math.prod(self.use.stack_shape) // len(layers)
        return [self.use.matrix] * (number * sum(each is not None for each in layers))

    @property
    def count(self) -> int:
        """How many numbers are trained for it alone."""
        if self.ranks is not None:
            return sum(self.ranks) * sum(self.use.matrix)
        return target_patterns.count(self.layers, self.use)


@dataclasses.dataclass(frozen=True)
class AdaptedSpec:
    """What `init` found out; static, and part of `Frozen`."""

    treedef: Any
    paths: tuple[str, ...]
    settings: tuple[tuple[str, type, Any], ...]
    """The leaves of the user's tree that are not arrays, by path: 1 and 1.0 differ in type."""
    placements: tuple[Placement, ...]
    tied: tuple[str, ...] = ()
    """The tables that are also the head."""
    full: tuple[WeightUse, ...] = ()
    """How the function uses the parameters that train in full."""
    left_out: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What a group such as "all-linear" passes over: what it is, and the paths."""

    def tree(self, arrays: Mapping[str, Any]) -> PyTree:
        """The user's tree, with these arrays in it."""
        leaves = {**{path: leaf for path, _, leaf in self.settings}, **arrays}
        return self.treedef.unflatten([leaves[path] for path in self.paths])

    def groups(self) -> dict[Variant, list[str]]:
        """The adapted paths of each variant."""
        groups: dict[Variant, list[str]] = {}
        for each in self.adapted:
            groups.setdefault(group_of(each), []).append(each.use.path)
        return groups

    def placed(self, paths: Collection[str]) -> list[Placement]:
        return [each for each in self.adapted if each.use.path in paths]

    @property
    def adapted(self) -> list[Placement]:
        """The placements of adapters."""
        return [each for each in self.placements if each.adapts]


def require_order(trainable: Any, frozen: Any) -> None:
    """Raise a ValueError unless these are what one `init` gives, in its order.

    Only structures are compared, so that this costs a compiled program nothing.
    """
    if not isinstance(frozen, Frozen) or not isinstance(trainable, Mapping):
        given = f"{type(trainable).__name__}, {type(frozen).__name__}"
        raise ValueError(f"expected (trainable, frozen), in the order of `init`, got ({given})")
    if lacking := [part for part in ("adapters", "params") if part not in trainable]:
        raise ValueError(f"trainable has no '{lacking[0]}': give all of what `init` gives")
    trained, fixed = trainable["adapters"].keys(), frozen.constants.keys()
    for path in (*trained, *fixed):
        if path not in trained or path not in fixed:
            where = ("trainable", "frozen") if path in trained else ("frozen", "trainable")
            raise ValueError(
                f"'{path}' has an adapter in {where[0]} and none in {where[1]}: both must come "
                "from one `init`"
            )
    require_live(trainable)


DONATED = (
    "this state was given to a training step, which deletes it (donation): go on with the state "
    "that the step returned"
)


def require_live(tree: Any) -> None:
    """Raise a ValueError if an array of the tree is deleted, as donated ones are."""
    arrays = (
        x for x in jax.tree.leaves(tree) if isinstance(x, Array) and not isinstance(x, Tracer)
    )
    if any(x.is_deleted() for x in arrays):
        raise ValueError(DONATED)


def settings_of(leaves: Mapping[str, Any]) -> tuple[tuple[str, type, Any], ...]:
    """The leaves of a tree that are not arrays, as an `AdaptedSpec` has them."""
    return tuple((path, type(leaf), leaf) for path, leaf in leaves.items() if not is_array(leaf))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Everything that is not trained, with the static description of how it is used."""

    base: dict[str, Any]
    """The frozen parameters by path, adapted weights included, as the user's tree has them.

    A quantised weight is a dict of arrays (see `quantize`).
    """
    constants: dict[str, dict[str, Array]]
    """The constants of each adapter: scales, masks, and other numbers that a study may vary."""
    spec: AdaptedSpec = dataclasses.field(metadata={"static": True})
    shared: tuple[dict[str, Array], ...] = ()
    """The constants that all adapters of one variant share, in the order of `spec.groups()`."""

    def shared_by_group(self, trainable: Trainable) -> dict[Variant, Shared]:
        """The arrays that all adapters of one variant share, in the order of `spec.groups()`."""
        trained, groups = trainable.get("shared", {}), self.spec.groups()
        constants = self.shared or ({},) * len(groups)
        return {
            variant: Factors(trained.get(str(number), {}), each)
            for number, (variant, each) in enumerate(zip(groups, constants, strict=True))
        }

    def shared_by(self, trainable: Trainable) -> dict[Variant, Shared]:
        """The arrays that the weights of each placed variant share."""
        groups, none = self.shared_by_group(trainable), Factors({}, {})
        return {each.variant: groups.get(group_of(each), none) for each in self.spec.placements}


def group_of(placement: Placement) -> Variant:
    """The variant that an adapter belongs to, whichever layers it acts on."""
    variant = placement.variant
    return variant.inner if isinstance(variant, SomeLayers) else variant


def variants_of(assigned: Assigned) -> list[Variant]:
    each = assigned if isinstance(assigned, tuple) else (assigned,)
    return [variant for variant in each if variant is not None]


def warn_of_ranks(placements: Iterable[Placement]) -> None:
    """Warn once if an adapter with a rank trains more numbers than its weight has.

    The warning has its place here, so that a second `init` of the same weights says nothing more.
    """
    wide = [
        each
        for each in placements
        if getattr(each.variant, "rank", None) and each.count > math.prod(each.use.shape)
    ]
    if wide:
        first, more = wide[0], f" (and {len(wide) - 1} more)" if len(wide) > 1 else ""
        own = math.prod(first.use.shape)
        warnings.warn(
            f"the adapter of '{first.use.path}'{more} trains {first.count:,} numbers and "
            f"its weight has {own:,}: lower its rank, or train the weight in full",
            TrainingWarning,
            stacklevel=1,
        )


def trains(use: WeightUse, rules: Sequence[Rule], assigned: Mapping[str, Assigned]) -> bool:
    """Whether any variant trains a parameter without an adapter in full."""
    if not use.is_real:
        return False
    mine = variants_of(assigned[use.path]) if use.path in assigned else []
    everyone = dict.fromkeys(variant for _, variant in rules if variant is not None)
    return any(variant.trains(use.path, use, variant in mine) for variant in everyone)


def place(use: WeightUse, assigned: Assigned | None, storage: Storage | None) -> Placement:
    """Check that the weight can be adapted, and combine the variants of its layers into one."""
    if not use.is_real:
        way_out = ""
        if jnp.issubdtype(use.dtype, jnp.complexfloating):
            way_out = "; adapters are real: keep its real and imaginary parts as two arrays"
        raise ValueError(f"'{use.path}' cannot be adapted: its dtype is {use.dtype}{way_out}")
    if not use.is_matrix:
        how = ", ".join(dict.fromkeys(str(each) for each in use.uses)) or "not at all"
        way_out = ""
        if use.uses and len(use.shape) > 1:
            way_out = f"; say which of its axes form a matrix: axes={{'{use.path}': (0, 1)}}"
        raise ValueError(
            f"'{use.path}' is selected, but no product shows its in and out axes (used: {how})"
            f"{way_out}"
        )
    if 0 in use.shape:
        where = "what is quantised" if assigned is None else "the targets"
        raise ValueError(f"'{use.path}' of shape {use.shape} is empty: leave it out of {where}")
    if assigned is None:
        return Placement(use, Unadapted(), Unadapted(), storage)
    try:
        for variant in variants_of(assigned):
            variant.validate(use.matrix)
    except ValueError as error:
        way_out = f"change the setting, or leave '{use.path}' out of the targets"
        raise ValueError(f"'{use.path}': {error}; {way_out}") from None
    try:
        if not isinstance(assigned, tuple):
            return Placement(use, assigned, assigned, storage)
        first, *_ = aligned(assigned)
    except ValueError as error:
        raise ValueError(f"'{use.path}': {error}") from None
    return Placement(use, SomeLayers(first) if None in assigned else first, assigned, storage)


def aligned(assigned: tuple[Variant | None, ...]) -> tuple[Variant, ...]:
    """The variants of the layers that have one, made equal in structure."""
    chosen = variants_of(assigned)
    return chosen[0].align(tuple(chosen))


def require_key(key: Any, where: str = "") -> None:
    """Raise a ValueError unless this is a random key."""
    if not is_key(key) and getattr(key, "dtype", None) != jnp.uint32:
        plain = key is None or isinstance(key, int)
        given = (
            type_name(key) if hasattr(key, "dtype") else repr(key) if plain else type(key).__name__
        )
        raise ValueError(f"{where}a random key is needed, such as jax.random.key(0), not {given}")


def fold_path(key: Array, path: str) -> Array:
    """A key for this path, the same whatever other paths there are."""
    require_key(key)
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def base_of(placement: Placement, value: Any) -> Base:
    """The weight as a `Base`, with stacked axes first."""
    use = placement.use
    if placement.storage is not None:
        dtype = jnp.dtype(use.dtype)
        return Quantized(value, "io", storage=placement.storage, size=use.matrix, dtypes=(dtype,))
    value, first = jnp.asarray(value), tuple(range(len(use.stack)))
    if use.stack != first:  # JAX copies what stays as it is, too
        value = jnp.moveaxis(value, use.stack, first)
    axes = sorted((*use.inputs, *use.outputs))
    return Base(value, "".join("i" if axis in use.inputs else "o" for axis in axes))


def weight_of(
    placement: Placement, trainable: Trainable, frozen: Frozen, dropout_key: Array | None
) -> Weight:
    """The weight as `evaluate` takes it; an unadapted one has no factors."""
    use = placement.use
    factors = Factors(trainable["adapters"].get(use.path, {}), frozen.constants.get(use.path, {}))
    if dropout_key is not None:
        dropout_key = fold_path(dropout_key, use.path)
        dropout_key = jax.random.split(dropout_key, use.stack_shape) if use.stack else dropout_key
    base = base_of(placement, frozen.base[use.path])
    view = View.of(use.shape)
    weight = Weight(
        base=base,
        factors=factors,
        dropout_key=dropout_key,
        variant=placement.variant,
        inputs=use.inputs,
        outputs=use.outputs,
        stack=view.pick(use.stack),
        view=view,
        dtypes=(jnp.dtype(base.dtype),),
    )
    # Inside a `shard_map`, each device may have its own adapter, with one base for all.
    shared = frozen.shared_by(trainable).get(placement.variant)
    return jaxprs.vary(weight, jaxprs.varying((weight, shared)))


def grouped(trainable: Trainable, frozen: Frozen) -> list[tuple[Variant, dict[str, Factors]]]:
    """The factors of each variant's matrices, with the arrays that these share in each of them."""
    groups: dict[Variant, dict[str, Factors]] = {}
    shared = frozen.shared_by(trainable)
    for each in frozen.spec.adapted:
        path = each.use.path
        factors = Factors(trainable["adapters"][path], frozen.constants[path])
        groups.setdefault(group_of(each), {})[path] = with_shared(factors, shared[each.variant])
    return list(groups.items())


def warn_of_doubts(trainable: Trainable, frozen: Frozen) -> None:
    """Warn if training seems to have left something out; the warning names the caller's caller."""
    for variant, factors in grouped(trainable, frozen):
        if doubt := variant.doubt(factors):
            warnings.warn(doubt, TrainingWarning, stacklevel=3)


def warn_of_choices(spec: AdaptedSpec) -> None:
    """Warn of a choice of weights that few want; the warning names the caller's caller."""
    chosen, left_out = spec.adapted, dict(spec.left_out)
    if "convolutions" in left_out and all(each.use.final for each in chosen):
        warnings.warn(
            f"only the last product is adapted, and {len(left_out['convolutions'])} convolutions "
            'are left out: targets="all-linear+conv" adapts them',
            TrainingWarning,
            stacklevel=3,
        )
    for each in chosen:
        merged = all(use.merges for use in each.use.uses)
        if merged and any(getattr(v, "dropout", 0) for v in variants_of(each.layers)):
            warnings.warn(
                f"dropout does not act on '{each.use.path}', whose adapter is merged "
                f"({each.use.uses[0].merges})",
                TrainingWarning,
                stacklevel=3,
            )
            break


NAMES = ("bias", "beta", "b")


def with_biases(placements: Sequence[Placement], uses: Uses) -> list[Placement]:
    """The placements, with the path of the layer's bias where the variant adapts it.

    Raises:
      ValueError: a variant adapts biases, and none of its weights has one, or two have the same.
    """
    found = [
        dataclasses.replace(each, bias=bias_beside(each.use, uses))
        if each.variant.adapts_bias
        else each
        for each in placements
    ]
    claimed = Counter(each.bias for each in found)
    if double := next((each for each in found if each.bias and claimed[each.bias] > 1), None):
        raise ValueError(
            f"'{double.bias}' is beside several weights whose {double.variant} would rescale it, "
            f"'{double.use.path}' among them"
        )
    asking = [each for each in found if each.variant.adapts_bias]
    if asking and not any(each.bias for each in asking):
        first = asking[0]
        raise ValueError(
            f"{first.variant} adapts biases, and none is beside '{first.use.path}' or its other "
            f"targets; a bias is named {', '.join(NAMES)}"
        )
    return found


def bias_beside(use: WeightUse, uses: Uses) -> str | None:
    """The path of a layer's bias: `a/bias` for `a/kernel`, `b` for `w`; None without one.

    The two differ in the last part of their names, and the bias has the weight's stacked axes and
    those of its outputs.
    """
    stem = re.sub(r"[^/._]*$", "", use.path)
    shape = (*use.stack_shape, *(use.shape[axis] for axis in use.outputs))
    paths = (f"{stem}{name}" for name in NAMES)
    return next((path for path in paths if path in uses and uses[path].shape == shape), None)


def effective_biases(
    arrays: Mapping[str, Any], trainable: Trainable, frozen: Frozen
) -> dict[str, Array]:
    """The biases that variants adapt, by path, in the shapes and dtypes that they have."""
    found, shared = {}, frozen.shared_by(trainable)
    for each in frozen.spec.placements:
        if each.bias is None:
            continue
        path, variant, stack = each.use.path, each.variant, each.use.stack_shape
        factors = Factors(trainable["adapters"][path], frozen.constants[path])
        bias = arrays[each.bias]

        def adapted(bias: Array, factors: Factors, variant: Variant = variant) -> Array:
            return variant.bias(bias, with_shared(factors, shared[variant]))

        rows = bias.reshape(*stack, each.use.matrix[1])
        rescaled = over_stack(adapted, len(stack))(rows, factors)
        found[each.bias] = rescaled.reshape(bias.shape).astype(bias.dtype)
    return found


def init_shared(key: Array, spec: AdaptedSpec) -> list[Shared]:
    """The arrays that each variant's matrices share, made from a key that depends on its class."""
    return [
        shared_arrays(fold_path(key, type(variant).__name__), variant, spec.placed(paths))
        for variant, paths in spec.groups().items()
    ]


def shared_arrays(key: Array, variant: Variant, placements: Iterable[Placement]) -> Shared:
    """The arrays that a variant's matrices share, made from the shapes of all of them."""
    placements = list(placements)
    dtypes = [wide(jnp.dtype(each.use.dtype)) for each in placements]
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    shapes = [shape for each in placements for shape in each.matrices]
    return shared_factors(variant, variant.init_shared(key, shapes, widest))


def shared_factors(variant: Variant, arrays: dict[str, Array]) -> Shared:
    """What `init_shared` gives, in what trains (`Variant.shared_trainable`) and constants.

    Raises:
      ValueError: something that is to train is not there.
    """
    names = variant.shared_trainable
    if lacking := [name for name in names if name not in arrays]:
        raise ValueError(f"{variant}: init_shared gives no '{lacking[0]}' of shared_trainable")
    constants = {name: x for name, x in arrays.items() if name not in names}
    return Factors({name: arrays[name] for name in names}, constants)


def count_shared(variant: Variant, shapes: Sequence[tuple[int, int]]) -> int:
    """How many numbers are trained that matrices of these shapes share."""
    start = functools.partial(variant.init_shared, shapes=shapes, dtype=jnp.float32)
    shared = shared_factors(variant, jax.eval_shape(start, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in shared.trainable.values())


def with_shared_arrays(
    trainable: Trainable, frozen: Frozen, shared: Iterable[Shared]
) -> tuple[Trainable, Frozen]:
    """The same with these arrays that adapters share, in the order of `spec.groups()`."""
    shared = list(shared)
    parts = {name: part for name, part in trainable.items() if name != "shared"}
    trained = {str(n): each.trainable for n, each in enumerate(shared) if each.trainable}
    constants = tuple(each.constants for each in shared)
    parts |= {"shared": trained} if trained else {}
    return parts, dataclasses.replace(frozen, shared=constants)


def split_shared(
    variant: Variant, named: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What is named for each matrix, {path: {name: ...}}, without and with what all of them share.

    What is named for shared arrays is the same under every path.
    """
    names = variant.shared_trainable
    own = {p: {n: x for n, x in each.items() if n not in names} for p, each in named.items()}
    return own, {n: x for each in named.values() for n, x in each.items() if n in names}
