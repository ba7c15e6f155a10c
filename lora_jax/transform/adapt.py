"""Adapt some of the weights of any JAX function: `adapt(forward, variant, targets)`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from lora_jax.base import Seen, Uses
from lora_jax.partition import Parts, flatten, is_array, require_function, split_arrays
from lora_jax.quantization.quantize import Storage
from lora_jax.transform import jaxprs, target_patterns
from lora_jax.transform.adapted_optimizer import (
    ForWeights,
    at_own_rates,
    preconditioned,
    with_master_weights,
    with_own_state,
)
from lora_jax.transform.begin import allotted, choose, init_factors, stored, unquantized
from lora_jax.transform.discover import Axes, uses_of
from lora_jax.transform.gather import Counts, Loss, gather, gathered_shapes
from lora_jax.transform.interpret import evaluate
from lora_jax.transform.placement import (
    AdaptedSpec,
    Frozen,
    PyTree,
    Trainable,
    effective_biases,
    fold_path,
    grouped,
    init_shared,
    require_key,
    require_order,
    settings_of,
    split_shared,
    warn_of_choices,
    warn_of_doubts,
    warn_of_ranks,
    weight_of,
    with_shared_arrays,
)
from lora_jax.transform.target_patterns import Pattern, Rule, Targets
from lora_jax.variant import Factors, Variant


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A function with adapted weights; a hashable description that holds no array (see `adapt`)."""

    forward: Callable[..., Any]
    rules: tuple[Rule, ...]
    also_train: tuple[str, ...] = ()
    storage: tuple[tuple[Pattern, Storage], ...] = ()
    axes: tuple[tuple[str, Axes], ...] = ()

    def init(
        self,
        key: Array,
        params: PyTree,
        /,
        *args: Any,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        counts: Counts | None = None,
        seen: Mapping[str, Seen] | None = None,
        **kwargs: Any,
    ) -> tuple[Trainable, Frozen]:
        """Trace the function once to see how it uses each weight, and make the factors.

        Args:
          key: for the random initialisation; each weight's own key depends only on its path.
          params: the parameters. They are not changed; those that will train are copied.
          *args: an example of the function's inputs; only shapes and dtypes matter.
          batches, loss, counts: for initialisations from data (LoRA-GA, EVA), as in `gather`.
          seen: what `gather` has found, instead of these.
          **kwargs: further inputs.

        Returns:
          `(trainable, frozen)`. Works under `jax.eval_shape` and `jax.jit` (with `seen`; close over
          it, as ranks are not divided by traced numbers).

        Raises:
          ValueError: a pattern matches nothing, the function never multiplies by a selected weight,
            a variant cannot work for a weight's shape, or nothing would train. The message names
            the path.
        """
        require_key(key, "init(key, params, ...): ")
        taken = {"batches": batches, "loss": loss, "counts": counts, "seen": seen}
        refuse_taken(self.forward, args, taken)
        full, begun = self._begin(params, *args, **kwargs)
        warn_of_choices(begun.spec)
        if seen is None:
            seen = gather(self.apply, key, full, begun, batches, loss, counts)
        spec, base, leaves = allotted(begun.spec, seen), begun.base, flatten(params)[0]
        adapters: dict[str, dict[str, Array]] = {}
        constants: dict[str, dict[str, Array]] = {}
        for each in spec.adapted:
            path = each.use.path
            original = unquantized(each, leaves[path]) if each.storage else None
            own = fold_path(key, path)
            try:
                factors = init_factors(own, each, base[path], seen.get(path), original)
            except ValueError as error:
                raise ValueError(f"'{path}': {error}") from error
            adapters[path], constants[path] = factors
        trainable, frozen = {"adapters": adapters}, Frozen(base, constants, spec)
        trainable, frozen = with_shared_arrays(trainable, frozen, init_shared(key, spec))
        # Copied: a method may use one array as both, and donation must not delete the constant.
        trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
        return {**trainable, "params": full}, frozen

    def gather(
        self,
        key: Array,
        params: PyTree,
        /,
        *args: Any,
        batches: Iterable[Any],
        loss: Loss | None = None,
        counts: Counts | None = None,
        **kwargs: Any,
    ) -> dict[str, Seen]:
        """What the methods ask to see of their weights, {path: `SeenGradient` or `SeenInputs`}.

        It is what `init` gathers, to be kept and given to it as `seen`. Weights whose methods ask
        for nothing are left out. All batches are gone through four times, and the directions are
        those of a randomised SVD: exact up to rounding where twice as many are all that there are.

        Args:
          key, params, *args, **kwargs: as in `init`.
          batches: trees of arrays, which are kept in memory. The gradient is their mean.
          loss: `loss(model, batch)`, a number, where `model(*inputs)` is the function with its
            parameters. Without it, which is enough for inputs, a batch is a tuple of inputs.
          counts: `counts(batch)`, how often each token counts as an input: the attention mask. See
            `lora_jax.transform.gather.Counts`. Without it all count alike, padding too.

        Raises:
          ValueError: as in `init`; there are no batches, or no loss for gradients; a gradient is
            zero or not finite; inputs of a merged weight are asked for, or `counts` does not fit.
        """
        require_key(key, "gather(key, params, ...): ")
        refuse_taken(self.forward, args, {"batches": batches, "loss": loss, "counts": counts})
        full, frozen = self._begin(params, *args, **kwargs)
        return gather(self.apply, key, full, frozen, batches, loss, counts)

    def _begin(self, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[dict, Frozen]:
        """The parameters to train in full, and the frozen part without adapters' arrays."""
        leaves, treedef = flatten(params)
        try:
            uses = self.uses(params, *args, **kwargs)
        except Exception as error:
            if is_array(params) and any(isinstance(each, Mapping) for each in args):
                error.add_note("init(key, params, x): are the parameters before the inputs?")
            raise
        placements, trained = choose(self.rules, self.also_train, self.storage, uses)
        warn_of_ranks(placements)
        full = {path: jnp.array(leaves[path], copy=True) for path in trained}
        base = {p: x for p, x in leaves.items() if is_array(x) and p not in full}
        base |= {each.use.path: stored(each, leaves[each.use.path]) for each in placements}
        tied = tuple(path for path, use in uses.items() if use.is_tied)
        own = tuple(uses[path] for path in trained)
        known = treedef, tuple(leaves), settings_of(leaves)
        taken = {each.use.path for each in placements if each.adapts} | full.keys()
        others = target_patterns.left_out(self.rules, uses, taken)
        left_out = tuple((kind, tuple(paths)) for kind, paths in others.items())
        spec = AdaptedSpec(*known, tuple(placements), tied, own, left_out)
        return full, Frozen(base, {}, spec)

    def uses(self, params: PyTree, /, *args: Any, **kwargs: Any) -> Uses:
        """What `lj.discover` gives for the function, with the axes that are stated."""
        return uses_of(self.forward, params, args, kwargs, dict(self.axes))

    def apply(
        self,
        trainable: Trainable,
        frozen: Frozen,
        /,
        *args: Any,
        dropout_key: Array | None = None,
        **kwargs: Any,
    ) -> Any:
        """`forward(merge(trainable, frozen), *args, **kwargs)`, without merging where possible.

        Args:
          dropout_key: turns adapter dropout on. It does not act on a weight that must be merged
            (`discover` lists those), on a lookup, or on a product by the transpose. Where the
            function differentiates inside itself, its derivatives draw other masks, or none.
        """
        require_order(trainable, frozen)
        refuse_taken(self.forward, args, {"dropout_key": dropout_key})
        plain = {**frozen.base, **trainable["params"]}
        if not frozen.spec.placements:
            return self.forward(frozen.spec.tree(plain), *args, **kwargs)
        plain |= effective_biases(plain, trainable, frozen)
        weights = dict(plain)
        for each in frozen.spec.placements:
            path, weight = each.use.path, weight_of(each, trainable, frozen, dropout_key)
            weights[path] = weight
            if each.storage is not None:
                plain[path] = jax.ShapeDtypeStruct(each.use.shape, each.use.dtype)
            if axes := jaxprs.varying(weight):
                plain[path] = jax.eval_shape(lambda x, to=axes: jaxprs.vary(x, to), plain[path])
        inputs, rebuild = split_arrays((args, kwargs))

        def flat(arrays: list[Any], values: list[Any]) -> Any:
            tree = frozen.spec.tree(dict(zip(weights, arrays, strict=True)))
            some_args, some_kwargs = rebuild(values)
            return self.forward(tree, *some_args, **some_kwargs)

        arrays, values = list(plain.values()), list(weights.values())
        return evaluate(flat, arrays, values, inputs, frozen.shared_by(trainable))

    def merge(self, trainable: Trainable, frozen: Frozen) -> PyTree:
        """Merge every adapter: plain parameters of the same structure, shapes and dtypes.

        Warns if training seems to have left something out (`update`).
        """
        require_order(trainable, frozen)
        warn_of_doubts(trainable, frozen)
        arrays = {**frozen.base, **_copied(trainable["params"])}
        arrays |= effective_biases(arrays, trainable, frozen)
        shared = frozen.shared_by(trainable)
        for each in frozen.spec.placements:
            weight = weight_of(each, trainable, frozen, None)
            with jax.default_matmul_precision("highest"):  # accelerators round operands otherwise
                arrays[each.use.path] = weight.dense(shared[each.variant])
        return frozen.spec.tree(arrays)

    def disable(self, trainable: Trainable, frozen: Frozen) -> PyTree:
        """The plain parameters without the adapters: the base, bit by bit.

        A quantised weight comes out dequantised. Parameters trained in full have no base value
        left; they keep their trained values.
        """
        require_order(trainable, frozen)
        arrays = {**frozen.base, **_copied(trainable["params"])}
        for each in frozen.spec.placements:
            if each.storage is not None:
                weight = weight_of(each.bare(), {"adapters": {}}, frozen, None)
                arrays[each.use.path] = weight.dense(Factors({}, {}))
        return frozen.spec.tree(arrays)

    def optimizer(
        self, tx: optax.GradientTransformation | ForWeights, frozen: Frozen
    ) -> optax.GradientTransformation:
        """`tx` with what variants do to the gradients of their factors before it (LoRA-Pro), and
        to learning rates after it (LoRA+). What trains in full in bfloat16 has master weights.
        """
        if not isinstance(frozen, Frozen):
            given = type(frozen).__name__
            raise ValueError(f"optimizer(tx, frozen): expected the frozen of `init`, not a {given}")
        if not isinstance(tx, ForWeights) and not hasattr(tx, "update"):
            given = type(tx).__name__
            raise ValueError(
                "optimizer(tx, frozen): expected an optimiser, such as optax.adam(1e-3), "
                f"not a {given}"
            )
        own = preconditioned(at_own_rates(tx, frozen), frozen)
        return with_own_state(with_master_weights(own, frozen))

    def penalty(self, trainable: Trainable, frozen: Frozen) -> Array | float:
        """What the variants add to the loss; zero for most."""
        groups = grouped(trainable, frozen)
        return sum((variant.penalty(factors) for variant, factors in groups), start=0.0)

    def init_state(self, trainable: Trainable, frozen: Frozen) -> tuple[Any, ...]:
        """The state that `update` carries from step to step, one entry for each variant."""
        groups = grouped(trainable, frozen)
        return tuple(variant.init_state(factors) for variant, factors in groups)

    def update(
        self,
        state: tuple[Any, ...],
        before: Trainable,
        after: Trainable,
        grads: Trainable,
        step: Array | int,
        frozen: Frozen,
    ) -> tuple[tuple[Any, ...], Trainable]:
        """Call after EVERY optimiser step: without it AdaLoRA never prunes; most do nothing here.

        Args:
          state: from `init_state`, then from the last `update`.
          before: the trainables at which the gradients were taken.
          after: the trainables after the optimiser's step.
          grads: the gradients; clipped, if the optimiser gets them clipped.
          step: the number of this step, from 0.

        Returns:
          The new state, and the trainables to continue with.
        """
        states, adapters, shared = [], dict(after["adapters"]), dict(after.get("shared", {}))
        groups = [grouped(tree, frozen) for tree in (before, after, grads)]
        for number, (each, *of_variant) in enumerate(zip(state, *groups, strict=True)):
            (variant, old), (_, new), (_, slopes) = of_variant
            gradients = {path: slope.trainable for path, slope in slopes.items()}
            each, changed = variant.update(each, old, new, gradients, jnp.asarray(step))
            states.append(each)
            own, common = split_shared(variant, changed)
            adapters |= own
            if common:
                shared[str(number)] = {**shared[str(number)], **common}
        changed = {**after, "adapters": adapters}
        return tuple(states), {**changed, "shared": shared} if shared else changed


def _copied(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays, which a step that donates its trainables does not delete."""

    def copied(x: Any) -> Any:
        return jnp.array(x, copy=True) if isinstance(x, Array) and not isinstance(x, Tracer) else x

    return {path: copied(x) for path, x in arrays.items()}


def adapt(
    forward: Callable[..., Any],
    variant: Variant | None = None,
    targets: Targets = target_patterns.ALL_LINEAR,
    also_train: Sequence[str] | str = (),
    quantize: Mapping[Any, Storage] | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
) -> Adapted:
    """A function like `forward`, some of whose weights are adapted by a variant.

    Args:
      forward: any JAX function of a parameter pytree, `forward(params, *args, **kwargs)`.
      variant: the method, for example `variants.make("lora", rank=8)`.
      targets: which weights: one or more patterns (regular expressions that match a whole path or
        its tail after a `/`; the path of a weight selects it alone), `lj.layers(pattern, slice)`
        for some layers, `"all-linear"` for every weight that activations are multiplied by except
        a tied or output embedding, `"all-linear+conv"` for convolutions as well, or a mapping of
        these to variants, without `variant`. A path decides before other keys, then the first key
        that matches a weight; None leaves it as it is.
      also_train: patterns of parameters to train in full, for example a new head.
      quantize: how frozen weights are stored, `{pattern: lj.NF4()}` (QLoRA), whether targets or
        not. The first pattern that matches decides. `init` refuses numbers that are not finite (or
        above 1e30); under `jax.jit` it cannot check them, and they corrupt what is stored.
      axes: which axes of a weight form its matrix, `{pattern: (inputs, outputs, stack)}`, each an
        axis or a tuple of axes; stack may be left out. This adapts any array of real numbers,
        whatever the function does with it. Without it, products and lookups show the axes.

    Returns:
      A description with pure functions: `init`, `apply`, `merge`, and for training `optimizer`,
      `penalty`, `init_state` and `update`.
    """
    require_function(forward)
    rules = target_patterns.as_rules(variant, targets)
    for _, each in rules:
        if each is not None and not isinstance(each, Variant):
            raise ValueError(f"{each!r} is not a variant; make one: variants.make('lora', rank=8)")
    if variant is None and not isinstance(targets, Mapping):
        raise ValueError("adapt needs a variant, or targets that map patterns to variants")
    if variant is not None and isinstance(targets, Mapping):
        raise ValueError(
            "targets maps patterns to variants: leave out variant, or add it to the mapping"
        )
    also = (also_train,) if isinstance(also_train, str) else also_train
    also = tuple(also) if isinstance(also, Iterable) else (also,)
    if not all(isinstance(each, str) for each in also):
        raise ValueError(f"also_train takes patterns (regular expressions), not {also_train!r}")
    if not isinstance(quantize, Mapping | None):
        raise ValueError(
            f"quantize maps patterns to storages, {{'all-linear': lj.NF4()}}, not {quantize!r}"
        )
    storage = tuple((quantize or {}).items())
    for pattern, each in storage:
        if not isinstance(each, Storage):
            raise ValueError(
                f"quantize: '{pattern}' must map to lj.NF4() or lj.Int8(), not {each!r}"
            )
    if not isinstance(axes, Mapping | None):
        raise ValueError(f"axes maps patterns to axes, {{'conv/w': ((0, 1), 2)}}, not {axes!r}")
    stated = tuple((pattern, _axes(pattern, each)) for pattern, each in (axes or {}).items())
    return Adapted(forward, rules, also, storage, stated)


def _axes(pattern: str, given: Sequence[Any]) -> Axes:
    """The axes that a user states, as tuples."""
    parts = (
        [(p,) if isinstance(p, int) else p for p in given] if isinstance(given, Sequence) else ()
    )
    if not 2 <= len(parts) <= 3 or not all(
        isinstance(part, Sequence) and all(isinstance(axis, int) for axis in part) for part in parts
    ):
        raise ValueError(
            f"axes: '{pattern}' must map to (inputs, outputs) or (inputs, outputs, stack), each an "
            f"axis or several, not {given!r}"
        )
    return Axes(*(tuple(part) for part in (*parts, ())[:3]))


def refuse_taken(
    function: Callable[..., Any], args: tuple[Any, ...], taken: Mapping[str, Any]
) -> None:
    """Raise a ValueError for a keyword that `function(params, *args)` has, too, and would not get.

    Args:
      taken: the keywords of the caller that are not passed on, by name; None is not given.
    """
    names = [name for name, value in taken.items() if value is not None]
    if not names:
        return
    try:
        signature = inspect.signature(function)
        by_position = signature.bind_partial(None, *args).arguments
    except (TypeError, ValueError):  # Python cannot tell, or the call itself will fail
        return
    bound = function.keywords if isinstance(function, functools.partial) else {}
    free = signature.parameters.keys() - by_position.keys() - bound.keys()
    if own := [name for name in names if name in free]:
        raise ValueError(
            f"'{own[0]}' is a parameter of the adapted function, too, which would not get it: "
            "give it by position, or rename it there"
        )


def init_shapes(
    adapted: Adapted,
    key: Array,
    params: PyTree,
    /,
    *args: Any,
    seen: Mapping[str, Seen] | None = None,
    **kwargs: Any,
) -> tuple[Trainable, Frozen]:
    """The shapes of what `adapted.init` gives; settings in the user's tree stay as they are.

    Args:
      key, params, *args, **kwargs: as in `Adapted.init`; arrays or their shapes.
      seen: as in `Adapted.init`; if it is left out, EVA's ranks are those before their division.
    """
    arrays, rebuild = split_arrays(params)

    def init(key: Array, arrays: list[Any], seen: Any) -> tuple[Trainable, Frozen]:
        return adapted.init(key, rebuild(arrays), *args, seen=seen, **kwargs)

    if seen is not None:
        return jax.eval_shape(functools.partial(init, seen=seen), key, arrays)
    return jax.eval_shape(init, key, arrays, seen_shapes(adapted, params, *args, **kwargs))


def seen_shapes(adapted: Adapted, params: PyTree, /, *args: Any, **kwargs: Any) -> dict[str, Seen]:
    """The shapes of what `adapted.gather` gives."""
    if not any(variant is not None and variant.needs for _, variant in adapted.rules):
        return {}
    uses = adapted.uses(params, *args, **kwargs)
    placements, _ = choose(adapted.rules, adapted.also_train, adapted.storage, uses)
    return gathered_shapes(placements)


def merged_parts(trainable: Trainable, frozen: Frozen) -> Parts:
    """What `Adapted.merge` gives, made layer by layer, and before it is rounded.

    Adapted weights are of float32 at least. Warns if training seems to have left something out.
    """
    require_order(trainable, frozen)
    warn_of_doubts(trainable, frozen)
    return _parts(trainable, frozen)


def base_parts(frozen: Frozen) -> Parts:
    """The frozen base without adapters: what is stored quantised is made dense again."""
    bare = [each.bare() for each in frozen.spec.placements]
    spec = dataclasses.replace(frozen.spec, placements=tuple(bare))
    return _parts({"adapters": {}, "params": {}}, dataclasses.replace(frozen, spec=spec, shared=()))


def _parts(trainable: Trainable, frozen: Frozen) -> Parts:
    arrays = {**frozen.base, **trainable["params"]}
    arrays |= effective_biases(arrays, trainable, frozen)
    placements = {each.use.path: each for each in frozen.spec.placements}
    shared = frozen.shared_by(trainable)

    def part(path: str, layer: int | None) -> Any:
        if path not in placements:
            return arrays[path] if layer is None else arrays[path][layer]
        placement = placements[path]
        weight = weight_of(placement, trainable, frozen, None)
        within = layer is not None and weight.is_stacked(0)
        if within:
            weight = jax.tree.map(lambda leaf: leaf[layer], weight.lead(0)).without_lead(0)
        with jax.default_matmul_precision("highest"):  # accelerators round operands otherwise
            array = dataclasses.replace(weight, dtypes=()).dense(shared[placement.variant])
        return array if within or layer is None else array[layer]

    shapes = {path: each for path, each in arrays.items() if path not in placements}
    shapes |= {
        path: jax.ShapeDtypeStruct(each.use.shape, each.use.dtype)
        for path, each in placements.items()
    }
    return Parts({path: shapes[path] for path in frozen.spec.paths if path in shapes}, part)
