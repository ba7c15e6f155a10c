"""The floating-point operations of a traced function's products."""

import math
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn

from lora_jax.transform import jaxprs


def product_flops(jaxpr: Jaxpr) -> int:
    """The FLOPs of all products (`dot_general`) of a jaxpr: 2 for each multiplication.

    The body of a loop counts as often as it runs; that of a `while` loop, whose number of rounds no
    trace has, counts once, and of a `cond` the branch with the most. Sums, norms and other
    operations by entry are left out.
    """
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: JaxprEqn) -> int:
    if eqn.primitive.name == "dot_general":
        return _of_product(eqn)
    inside = list(map(product_flops, jaxprs.inside(eqn)))
    if eqn.primitive.name == "cond":
        return max(inside, default=0)
    return int(eqn.params["length"] if eqn.primitive.name == "scan" else 1) * sum(inside)


def _of_product(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left: Any = eqn.invars[0].aval
    out: Any = eqn.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
