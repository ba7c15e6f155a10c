"""Check the loss and gradients of a compiled step against an evaluation without a compiler.

Compilers are sometimes wrong: XLA's CPU releases of 2026 read uninitialised memory, in sums of a
kind that reverse mode makes. A run with wrong gradients still trains, to scores that look like
those of a worse method. So the step that a run is about to take many times is first taken once
where the right result is known.

The audit compares the run's own program, compiled for its own batches: nothing is traced or
compiled for the audit alone. It reads the gradient from the optimiser's first moment after one step
from zero, or its square from the second moment of an optimiser that keeps no first one. That is the
gradient times the same factor on both sides, clipped if the run clips.
`by_numpy` evaluates the same jaxpr that was compiled. The audit cannot see mistakes that come
before the jaxpr (in JAX's or this project's derivatives, which tests check), in what the optimiser
does with its first moment, or in evaluation.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax.interpreters import partial_eval
from jax.tree_util import GetAttrKey, SequenceKey

from lora_jax.compiled.by_numpy import ByNumpy, rounded_operands
from lora_jax.compiled.jaxpr_costs import peak_bytes
from lora_jax.files.arrays import copies, is_key, to_host
from lora_jax.messages import first_line
from lora_jax.sharding.mesh import said_by_all
from lora_jax.transform.placement import Trainable

FLOOR = 32 * float(np.finfo(np.float32).eps)
"""A difference that is never an error: float32 sums in another order differ by this much."""
FLOOR_OF_NARROW = 4
"""The same for gradients of fewer bits, in units of the dtype's `eps`. XLA rounds sums of them more
than once, NumPy only at the end."""
MULTIPLE = 16.0
"""The tolerance as a multiple of the error that dtypes explain. A right program differs by one to
three times that error, as it fuses operations without rounding in between or adds in other orders.
The faults to be found differ by the gradient's own size."""
MOST = 0.3
"""The largest tolerance, whatever dtypes explain. In bfloat16, a right gradient of forty layers is
off by 0.07; a gradient of zeros, or of another batch, is off by 1 and more."""
NOISE = 0.02
TINY = 1e-30
GRADIENT = "the gradient of "
MOMENTS = (("mu",), ("trace",), ("nu",), ("v", "v_row", "v_col"))
"""What optimisers of Optax call the gradient in their state, or its square; the first is used."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The largest error of a compiled step, its tolerance, and where it was."""

    leaf: str
    error: float
    """A gradient leaf's error over the norm of the whole gradient; a metric's, over the metric."""
    tolerance: float

    @property
    def passes(self) -> bool:
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit` found over all cases."""

    largest: Finding
    batches: int
    seconds: float
    compiling: float
    """Of `seconds`, what the run would have spent in its first steps anyway."""
    left_out: Mapping[str, str]
    """Cases that could not be compared, and why."""

    def values(self) -> dict[str, Any] | None:
        """The values for the record; None if nothing could be compared."""
        found = {**dataclasses.asdict(self.largest), "batches": self.batches}
        return found if self.batches else None

    def shared(self, count: int) -> "Audit":
        """One trial's share of an audit that was for `count` trials."""
        return dataclasses.replace(
            self, seconds=self.seconds / count, compiling=self.compiling / count
        )


def perturbed(trainable: Trainable, seed: int = 0) -> Trainable:
    """Trainables moved away from a method's start, so that no gradient is zero.

    At the start of most methods, one factor is zero, and so is the other's gradient.
    """
    rng = np.random.default_rng([seed, 20260])

    def one(leaf: Any) -> Any:
        values = np.asarray(to_host(leaf), np.float64)
        size = math.sqrt(np.mean(np.square(values))) if values.size else 0.0
        moved = values + rng.standard_normal(values.shape) * (NOISE * size or NOISE)
        where = leaf.sharding if getattr(leaf, "committed", False) else None
        return jax.device_put(moved.astype(leaf.dtype), where)

    return jax.tree.map(one, trainable)


def audit(
    step: Any,
    cases: Iterable[tuple[str, Callable[[], tuple[Any, ...]]]],
    trials: int | None = None,
    room: int | None = None,
    advice: str = "",
) -> Audit:
    """Compare a jitted step with itself, operation by operation, for every case.

    Args:
      step: jitted, `(...) -> (state, metrics)`, with an `opt_state` in the state; its optimiser
        keeps a moment (`MOMENTS`), as Adam does, and has not stepped yet.
      cases: the name of each, and a function that makes its arguments, which the step may donate.
      trials: how many trials the step takes at once, if all that it returns has an axis for them.
      room: bytes of memory; a case that takes more is left out, and nothing is compiled for it.
      advice: what to do about an error, for its message.

    Raises:
      ValueError: a loss or a gradient is wrong; it names the leaf.
    """
    began, compiling, batches = time.perf_counter(), 0.0, 0
    largest, left_out = Finding("", 0.0, FLOOR), {}
    for name, make in cases:
        found, seconds = compare(step, make(), trials, room)
        compiling += seconds
        if isinstance(found, str):
            left_out[name] = found
            continue
        if not found.passes:
            raise ValueError(_complaint(found, name, advice))
        batches += 1
        largest = max(largest, found, key=lambda each: each.error / each.tolerance)
    return Audit(largest, batches, time.perf_counter() - began, compiling, left_out)


def compare(
    step: Any, arguments: tuple[Any, ...], trials: int | None = None, room: int | None = None
) -> tuple[Finding | str, float]:
    """The largest error of a jitted step's loss and gradients, and the seconds of the step itself.

    The error is the distance to the same operations done one by one, in their own dtypes. The
    tolerance is the floor of the dtypes of what trains. For an error above it, it is `MULTIPLE`
    times the distance of those operations from float64, and `MOST` at most. A text in place of a
    finding says why there is none: the jaxpr cannot be evaluated here, or gives numbers that are
    not finite. All copies of an array on several devices are compared. Every process must call
    this, and all get the same answer.
    """
    began = time.perf_counter()
    traced = step.trace(*arguments)  # the step uses this trace, too
    seconds = time.perf_counter() - began
    leaves = jax.tree.leaves(arguments)
    needed, why = peak_bytes(traced.jaxpr.jaxpr) + sum(leaf.nbytes for leaf in leaves), ""
    if room is not None and needed > room:
        sizes = f"{needed / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB are free"
        why = f"its evaluation by NumPy takes {sizes}"
    if why := next(filter(None, said_by_all(why)), ""):
        return why, seconds
    leaves = jax.tree.map(_own_copy, leaves)
    began = time.perf_counter()
    result = jax.block_until_ready(step(*arguments))
    seconds += time.perf_counter() - began

    return _agreed(_judged(traced.jaxpr, leaves, result, trials)), seconds


def _judged(closed: Any, leaves: Sequence[Any], result: Any, trials: int | None) -> Finding | str:
    """What this process finds about the copies of a step's results on its devices."""
    outputs = jax.tree_util.tree_leaves_with_path(result)
    moments = _moments([path for path, _ in outputs])
    observed = [_observed(path, moments) if _is_float(x) else None for path, x in outputs]
    used = [name is not None for name in observed]
    names = [name for name in observed if name is not None]
    if not any(name.startswith(GRADIENT) for name in names):
        raise ValueError("the optimiser keeps no first moment (mu), nor another: nothing to audit")
    arrays = [x for (_, x), use in zip(outputs, used, strict=True) if use]
    # The moment of a narrow gradient may be wide (master weights); the parameter is not.
    floor = max(_floor(x.dtype) for _, x in outputs if _is_float(x))
    wholes = [to_host(x) for x in arrays]
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)

    def by_numpy(of: Any, wide: bool = False) -> list[np.ndarray]:
        operands = None if wide else rounded_operands(jax.default_backend())
        return ByNumpy(wide, operands)(of, closed.consts, leaves)

    try:
        own = by_numpy(jaxpr)
        if not all(np.isfinite(each).all() for each in own):
            return "its loss or gradient is not finite in NumPy's evaluation either"
        each = (worst(names, copy, own, trials) for copy in copies(arrays, wholes))
        found = dataclasses.replace(max(each, key=lambda one: one.error), tolerance=floor)
        if math.isfinite(found.error) and (number := _not_finite(outputs)) is not None:
            where, truth = _text(outputs[number][0][1:]), by_numpy(closed.jaxpr)[number]
            if not np.isfinite(truth).all():
                return f"{where} is not finite in NumPy's evaluation either"
            found = Finding(where, math.inf, floor)
        if floor < found.error < math.inf:
            tolerance = MULTIPLE * worst(names, own, by_numpy(jaxpr, wide=True), trials).error
            found = dataclasses.replace(found, tolerance=max(floor, min(tolerance, MOST)))
    except Exception as error:  # whatever it is: no run depends on this evaluation
        return first_line(error)
    return found


def _agreed(mine: Finding | str) -> Finding | str:
    """What all processes find: the largest error, or why one of them has no finding."""
    said = said_by_all(mine if isinstance(mine, str) else dataclasses.asdict(mine))
    findings = [Finding(**each) for each in said if not isinstance(each, str)]
    wrong = [found for found in findings if not found.passes]
    why = [each for each in said if isinstance(each, str)]
    return why[0] if why and not wrong else max(findings, key=lambda each: each.error)


def worst(
    names: Sequence[str],
    given: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    trials: int | None = None,
) -> Finding:
    """The largest error of what was observed; infinite if a value is not finite but should be.

    With `trials`, each trial is compared by itself.
    """
    if trials is not None:
        each = [
            worst(names, [x[number] for x in given], [x[number] for x in truth])
            for number in range(trials)
        ]
        return max(each, key=lambda found: found.error)
    is_gradient = [name.startswith(GRADIENT) for name in names]
    norm = math.hypot(*(_norm(x) for x, is_one in zip(truth, is_gradient, strict=True) if is_one))
    found = Finding("", 0.0, FLOOR)
    for name, x, y, is_one in zip(names, given, truth, is_gradient, strict=True):
        error = _norm(x - y) / max(norm if is_one else _norm(y), TINY)
        if not error <= found.error:
            found = Finding(name, error if math.isfinite(error) else math.inf, FLOOR)
    return found


def _norm(array: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(np.ravel(np.asarray(array, np.float64))))


def _moments(paths: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The names under which the state keeps the gradient, or else its square."""
    for names in MOMENTS:
        keys = tuple(GetAttrKey(name) for name in names)
        if any(key in path for path in paths for key in keys):
            return keys
    return ()


def _observed(path: tuple[Any, ...], moments: tuple[Any, ...]) -> str | None:
    """The name of a step's output, or None if it is not compared."""
    if path[0] == SequenceKey(1):
        return _text(path[1:])
    for place, key in enumerate(path):
        if key in moments:  # the path after it is a trainable's, adapters or params first
            return GRADIENT + _text(path[place + 2 :])
    return None


def _floor(dtype: Any) -> float:
    eps = float(jnp.finfo(dtype).eps)
    return max(FLOOR, FLOOR_OF_NARROW * eps) if dtype.itemsize < 4 else FLOOR


def _text(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _not_finite(outputs: Sequence[tuple[Any, Any]]) -> int | None:
    """The number of a step's first output that is not finite, except a method's own state."""
    for number, (path, leaf) in enumerate(outputs):
        if _is_float(leaf) and GetAttrKey("variant_state") not in path and not _finite(leaf):
            return number
    return None


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _finite(leaf: Any) -> bool:
    parts = (np.asarray(shard.data, np.float64) for shard in leaf.addressable_shards)
    return all(np.isfinite(part).all() for part in parts)


def _own_copy(leaf: Any) -> Any:
    """A copy of an argument's leaf in memory that a step cannot take over by donation."""
    if is_key(leaf):
        data: Any = np.array(to_host(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return np.array(to_host(leaf))


def _complaint(found: Finding, name: str, advice: str) -> str:
    off = f"off by {found.error:.2g}, and dtypes explain only {found.tolerance:.2g}"
    wrong = off if math.isfinite(found.error) else "not finite"
    where = f"jaxlib {jaxlib.version.__version__} on {jax.default_backend()}"
    return f"the compiled step is wrong for {name}: {found.leaf} is {wrong} ({where}); {advice}"
