"""How a function uses each of its parameters: multiplied by, looked up in, or only added.

`discover` traces the function once and follows every parameter through the trace, without computing
anything. Products show which axes of a weight are in and out axes, and which are stacked (one
matrix each). All other uses show where an adapted weight would have to be merged.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lora_jax.partition import flatten, is_array, split_arrays
from lora_jax.transform import jaxprs
from lora_jax.transform.follow_uses import ObservedUse, UseRecorder
from lora_jax.transform.tracked import Tracked, untracked
from lora_jax.transform.views import View
from lora_jax.uses import Use, Uses, WeightUse


def discover(forward: Callable[..., Any], params: Any, /, *args: Any, **kwargs: Any) -> Uses:
    """How `forward(params, *args, **kwargs)` uses each array of `params`.

    Args:
      forward: any JAX function of a parameter pytree.
      params: the parameters, or their `jax.ShapeDtypeStruct`s.
      *args: an example of its inputs (only shapes and dtypes matter).
      **kwargs: further inputs; values that are not arrays are passed on as they are.

    Returns:
      `{path: WeightUse}`; print it for a table of what can be adapted, and what merges and why.
    """
    leaves, treedef = flatten(params)
    arrays = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
    inputs, rebuild = split_arrays((args, kwargs))

    def flat(weights: list[Any], values: list[Any]) -> Any:
        filled = {**leaves, **dict(zip(arrays, weights, strict=True))}
        some_args, some_kwargs = rebuild(values)
        return forward(treedef.unflatten(filled.values()), *some_args, **some_kwargs)

    jaxpr, _, _ = jaxprs.trace(flat, list(arrays.values()), inputs)
    recorder = UseRecorder(jaxprs.final_products(jaxpr, jaxpr.outvars)[0])
    tracked = [Tracked(path, View.of(leaf.shape)) for path, leaf in arrays.items()]
    given = [untracked(var, data=True) for var in jaxpr.invars[len(tracked) :]]
    for out in recorder.run(jaxpr, [*tracked, *given]):
        recorder.record_other(out, "returned")
    observed = recorder.uses
    uses = {path: _conclude(path, leaf, observed.get(path, [])) for path, leaf in arrays.items()}
    return Uses(_mark_output_embeddings(uses))


def _conclude(path: str, leaf: Any, observed: list[ObservedUse]) -> WeightUse:
    """Combine all uses of a parameter; the use that ranks first decides its axes.

    Mixed uses rank last. Then uses of more axes rank higher, as one of fewer axes may be of one
    row; then uses that merge nothing, where there is more to gain; then lookups before products, as
    for a tied table.
    """
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    use = WeightUse(path, tuple(leaf.shape), dtype)
    shaped = [each for each in observed if each.contracted | each.free]
    order = ("lookup", "product", "convolution", "mixed")
    main = min(
        shaped,
        key=lambda each: (
            each.kind == "mixed",
            -len(each.contracted | each.free),
            each.merges is not None,
            order.index(each.kind),
        ),
        default=None,
    )
    if main:
        inputs = tuple(sorted(main.contracted))
        outputs = tuple(sorted(main.free - main.contracted))
        stack = tuple(a for a in range(len(use.shape)) if a not in (*inputs, *outputs))
        use = dataclasses.replace(use, stack=stack, inputs=inputs, outputs=outputs)
    kinds = [_kind(each, use) for each in observed]
    return dataclasses.replace(
        use,
        uses=tuple(dict.fromkeys(kinds)),
        activations=any(each.activations for each in observed),
        constant_inputs=any(each.constant for each in observed),
        output_embedding=any(each.final for each in observed),
    )


def _kind(observed: ObservedUse, use: WeightUse) -> Use:
    """The kind of a use, given the axes that were chosen for the parameter."""
    if observed.kind not in ("product", "lookup"):
        kind = str(observed.merges) if observed.kind == "mixed" else observed.kind
        return Use(kind, observed.merges)
    contracted, free = tuple(sorted(observed.contracted)), tuple(sorted(observed.free))
    if (contracted, free) == (use.inputs, use.outputs):
        return Use(observed.kind, observed.merges)
    if (contracted, free) == (use.outputs, use.inputs) and observed.kind == "product":
        return Use("transposed product", observed.merges)
    return Use(observed.kind, observed.merges or "other axes")


def _mark_output_embeddings(uses: dict[str, WeightUse]) -> dict[str, WeightUse]:
    """Mark tied tables; keep the mark of final products only for heads onto the token table's rows.

    The token table is taken to be one of the two longest tables, as a small vocabulary may be
    shorter than the table of positions.
    """
    tables = [u for u in uses.values() if any(each.kind == "lookup" for each in u.uses)]
    longest = sorted(tables, key=lambda use: -use.matrix[0])[:2]
    heads = [table.matrix[::-1] for table in longest]
    marked = {}
    for path, use in uses.items():
        tied = use in tables and any(each.kind != "lookup" for each in use.uses)
        head = use.output_embedding and use.matrix in heads
        marked[path] = dataclasses.replace(use, output_embedding=tied or head)
    return marked
