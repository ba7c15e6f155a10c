"""The contract suite: what every variant must do, checked on toys in 5 to 10 seconds.

`check(variant)` runs it on any variant, yours included. Each clause is a function of a variant that
passes in silence or raises an error of one line. `CLAUSES` lists them; those about one matrix come
first, because a mistake there causes mistakes everywhere else.
"""

import dataclasses
import timeit
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lora_jax.contract.clause import Clause, ContractError as ContractError
from lora_jax.contract.compositions import OF_COMPOSITIONS as OF_COMPOSITIONS
from lora_jax.contract.matrix import OF_A_MATRIX as OF_A_MATRIX
from lora_jax.contract.model import OF_A_MODEL as OF_A_MODEL, OF_TRAINING as OF_TRAINING
from lora_jax.contract.toys import factors_of, normal, seen_of, unit
from lora_jax.messages import require_known
from lora_jax.table import Table
from lora_jax.variant import Base, Variant

CLAUSES: tuple[Clause, ...] = (*OF_A_MATRIX, *OF_A_MODEL, *OF_TRAINING, *OF_COMPOSITIONS)
ROWS, WIDTH, ROUNDS = 256, 768, 10
"""The sizes with which `dot` is timed."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The clauses of a check, each with its result; printing it gives a table."""

    variant: Variant
    rows: tuple[tuple[str, str], ...]
    dot_time: float | None = None
    """The time of `dot` over that of `x @ W'` with a dense W'; None if it was not measured."""
    dot_of: str = ""
    """The sizes, dtype and device of that."""

    def __str__(self) -> str:
        table = f"{self.variant}\n{Table(('clause', 'result'), self.rows).to_text()}"
        if self.dot_time is None:
            return table
        return f"{table}\ndot takes {self.dot_time:.2f} x the time of x @ W' ({self.dot_of})"

    __repr__ = __str__


def clauses(variant: Variant) -> tuple[Clause, ...]:
    """The clauses that apply to a variant; without factors, only those of a model and training."""
    return CLAUSES if variant.adapts else (*OF_A_MODEL, *OF_TRAINING)


def check(variant: Variant, *, checks: Sequence[str] | str | None = None) -> Report:
    """Check that a variant keeps the contract, in float64 and on the devices that there are.

    Args:
      variant: yours, for example `MyVariant(rank=4)`.
      checks: the names of some clauses, or of one; all of them by default, and then `dot` is
        timed, too.

    Returns:
      A table of the clauses, and how long `dot` takes beside the product with a dense weight.

    Raises:
      ContractError: one line that names the first clause that is broken, and by how much.
      ValueError: an unknown name in `checks`.
    """
    checks = [checks] if isinstance(checks, str) else checks
    names = [each.__name__ for each in CLAUSES]
    for name in checks or ():
        require_known(name, names, f"unknown clause '{name}'")
    rows = []
    for each in CLAUSES:
        if checks is None or each.__name__ in checks:
            applies = each in clauses(variant)
            if applies:
                each(variant)
            rows.append((each.__name__, "ok" if applies else "does not apply: no factors"))
    timed = dot_time(variant) if checks is None and variant.adapts else (None, "")
    return Report(variant, tuple(rows), *timed)


def dot_time(variant: Variant) -> tuple[float, str]:
    """The time of `dot` over that of `x @ W'` with a dense W', and of what it was measured.

    Both are compiled as users compile them, for float32 on the default device. They run in turns,
    and the shortest time of each counts.
    """
    shape = _shape(variant)
    seen = seen_of(variant, shape, jnp.float32)
    base = Base(normal(shape, 0, jnp.float32, shape[0] ** -0.5), "io", seen=seen)
    x = normal((ROWS, shape[0]), 1, jnp.float32)
    factors = jax.jit(lambda base: factors_of(variant, base))(base)
    weight = jax.jit(lambda *given: variant.weight(*given))(base, factors)
    dot = jax.jit(lambda *given: variant.dot(*given))
    dense = jax.jit(jnp.matmul)
    calls = (
        lambda: jax.block_until_ready(dot(x, base, factors)),
        lambda: jax.block_until_ready(dense(x, weight)),
    )
    times = [[timeit.timeit(call, number=1) for call in calls] for _ in range(ROUNDS + 1)]
    own, plain = (min(column) for column in zip(*times[1:], strict=True))  # the first compiles
    size = " x ".join(map(str, (ROWS, *shape)))
    return own / plain, f"{size}, float32, {jax.default_backend()}"


def _shape(variant: Variant) -> tuple[int, int]:
    """A square matrix that the variant works for, about as wide as a small model's."""
    size = unit(variant)
    wide = max(WIDTH // size, 2) * size
    try:
        variant.validate((wide, wide))
    except ValueError:
        wide = 2 * size
    return wide, wide
