"""Run a traced function with adapted weights in the place of arrays.

For speed, a product with an adapted weight uses the variant's own `dot`. For correctness, any
operation without a rule gets the merged weight. Operations on a weight's layout are followed, and
loops, branches, inner jits and rematerialised blocks are entered.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn

from lora_jax.transform import adapted_weight, jaxprs, slices
from lora_jax.transform.adapted_weight import Shared, Weight
from lora_jax.transform.convolutions import as_product, convolve
from lora_jax.variant import Variant

Value = Any  # an array or a Weight


def evaluate(
    function: Callable[..., Any],
    arrays: Sequence[Any],
    weights: Sequence[Value],
    inputs: Sequence[Any],
    shared: Mapping[Variant, Shared],
) -> Any:
    """`function(weights, inputs)`, where some of the weights are adapted (`Weight`).

    The function is traced with `arrays` in place of the weights, whose shapes, dtypes and shardings
    they have.

    Args:
      shared: the arrays that all weights of a variant share, trained or not.
    """
    jaxpr, consts, shape = jaxprs.trace(function, list(arrays), list(inputs))
    evaluator = _Evaluator(shared)
    outputs = evaluator.merged(evaluator.run(jaxpr, consts, [*weights, *inputs]))
    found = [
        each if isinstance(each, jax.Array) else jaxprs.as_array(var, each)
        for each, var in zip(outputs, jaxpr.outvars, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shape), found)


class _Evaluator(jaxprs.Walk):
    def __init__(self, shared: Mapping[Variant, Shared]) -> None:
        self._uses = itertools.count()  # numbers the products, so that each has its own dropout
        self._shared = shared

    def _shared_by(self, weight: Weight) -> Shared:
        """What the weights of a variant share; a part of a weight has its own already."""
        return self._shared.get(weight.variant, Shared({}, {}))

    def merged(self, values: Sequence[Value]) -> list[Any]:
        """The values as arrays: adapted weights are merged."""
        return [
            value.dense(self._shared_by(value)) if isinstance(value, Weight) else value
            for value in values
        ]

    def step(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        results = None
        if any(isinstance(value, Weight) for value in operands):
            results = super().step(eqn, operands)
        return jaxprs.apply(eqn, self.merged(operands)) if results is None else results

    def operation(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value] | None:
        """The results of an equation that takes adapted weights, or None if it has no rule."""
        match eqn.primitive.name:
            case "dot_general":
                return self._dot(eqn, operands)
            case "conv_general_dilated" if isinstance(operands[1], Weight):
                return self._convolution(eqn, operands[1], operands[0])
            case "optimization_barrier":
                return lax.optimization_barrier(operands)
            case name if name in jaxprs.REMAT:
                return self._remat(eqn, operands)
        weight, *rest = operands
        if not isinstance(weight, Weight) or any(isinstance(value, Weight) for value in rest):
            return None
        if (followed := weight.follow(eqn, operands)) is not None:
            return [followed]
        if (parts := weight.parts(eqn)) is not None:
            return parts
        shared = self._shared_by(weight)
        if (part := slices.follow(weight, eqn, operands, shared)) is not None:
            return [part]
        if (parts := slices.parts(weight, eqn, shared)) is not None:
            return parts
        y = adapted_weight.lookup(weight, eqn, rest, self._shared_by(weight))
        return None if y is None else [y]

    def _dot(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value] | None:
        side = 1 if isinstance(operands[1], Weight) else 0
        weight, (x,) = operands[side], self.merged([operands[1 - side]])
        y = adapted_weight.dot(weight, eqn, x, side, next(self._uses), self._shared_by(weight))
        return None if y is None else [y]

    def _convolution(self, eqn: JaxprEqn, weight: Weight, x: Value) -> list[Value] | None:
        (x,) = self.merged([x])
        if product := as_product(eqn):
            return self.run(*product, [x, weight])
        y = convolve(weight, eqn, x, next(self._uses), self._shared_by(weight))
        return None if y is None else [y]

    def _remat(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        body = jaxprs.inner(eqn.params["jaxpr"])

        def block(*values: Value) -> list[Any]:
            return self.merged(self.run(*body, values))

        policy, prevent_cse = eqn.params["policy"], eqn.params["prevent_cse"]
        return jax.checkpoint(block, policy=policy, prevent_cse=prevent_cse)(*operands)

    def branch(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value] | None:
        if jaxprs.by_platform(eqn):
            return None
        index, *values = operands

        def chosen(closed: Any) -> Callable[[], list[Any]]:
            return lambda: self.merged(self.run(*jaxprs.inner(closed), values))

        return lax.switch(index, [chosen(closed) for closed in eqn.params["branches"]])

    def scan(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        params, (body, fixed, carry, rows) = eqn.params, jaxprs.Scan.of(eqn, operands)
        carried = _Carried(self, body.jaxpr, len(fixed), carry)
        stacked = [
            each.lead(0)
            if isinstance(each, Weight) and each.is_stacked(0)
            else self.merged([each])[0]
            for each in rows
        ]

        def step(values: list[Any], slices: tuple[Any, list[Value]]) -> tuple[list[Any], list[Any]]:
            iteration, row = slices
            row = [each.without_lead(0) if isinstance(each, Weight) else each for each in row]
            same = [_dropping_anew(e, iteration) for e in (*fixed, *carried.fill(values))]
            outputs = self.run(*body, [*same, *row])
            return carried.varying(outputs), self.merged(outputs[len(carry) :])

        drops = any(_drops(each) for each in (*fixed, *carry))
        iterations = jnp.arange(params["length"]) if drops else None
        last, ys = lax.scan(
            step,
            carried.start,
            (iterations, stacked),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carried.fill(last), *ys]

    def loop(self, eqn: JaxprEqn, operands: list[Value]) -> list[Value]:
        test, asked, body, fixed, carry = jaxprs.While.of(eqn, operands)
        carried = _Carried(self, body.jaxpr, len(fixed), carry)

        def goes_on(values: list[Any]) -> Any:
            return self.run(*test, [*asked, *carried.fill(values)])[0]

        def after(iteration: Any, values: list[Any]) -> list[Any]:
            same = [_dropping_anew(e, iteration) for e in (*fixed, *carried.fill(values))]
            return carried.varying(self.run(*body, same))

        if jaxprs.shape(test.jaxpr.outvars[0]):  # of a vmapped loop: whether each row goes on

            def next_rows(state: tuple[Any, Any, list[Any]]) -> tuple[Any, Any, list[Any]]:
                iteration, rows, values = state
                new = jaxprs.where_rows(rows, after(iteration, values), values)
                return iteration + 1, goes_on(new), new

            start = jnp.uint32(0), goes_on(carried.start), carried.start
            return carried.fill(lax.while_loop(lambda s: s[1].any(), next_rows, start)[2])

        def step(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
            iteration, values = state
            return iteration + 1, after(iteration, values)

        _, last = lax.while_loop(lambda s: goes_on(s[1]), step, (jnp.uint32(0), carried.start))
        return carried.fill(last)


class _Carried:
    """What a loop carries; weights that its body returns unchanged are kept out of the carry."""

    def __init__(self, run: _Evaluator, body: Jaxpr, fixed: int, values: list[Value]):
        self._run = run
        same = jaxprs.unchanged(body, fixed, len(values))
        self._kept = [
            v if stays and isinstance(v, Weight) else None
            for v, stays in zip(values, same, strict=True)
        ]
        self.start = self.varying(values)

    def fill(self, varying: Sequence[Any]) -> list[Value]:
        """All carried values, given those that vary."""
        rest = iter(varying)
        return [next(rest) if kept is None else kept for kept in self._kept]

    def varying(self, values: Sequence[Value]) -> list[Any]:
        """Those of the carried values, which come first in `values`, that vary; as arrays."""
        pairs = zip(values, self._kept, strict=False)
        return self._run.merged([value for value, kept in pairs if kept is None])


def _drops(value: Value) -> bool:
    return isinstance(value, Weight) and value.dropout_key is not None


def _dropping_anew(value: Value, iteration: Any) -> Value:
    """Give a weight that all iterations of a loop share different dropout in each iteration."""
    return value.fold_dropout_key(iteration) if _drops(value) else value
