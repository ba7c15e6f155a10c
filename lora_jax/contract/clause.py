"""Clauses of the contract: functions of a variant that pass in silence, or raise."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.compiled.by_numpy import ByNumpy
from lora_jax.files.arrays import is_key
from lora_jax.messages import said
from lora_jax.variant import TrainingWarning, Variant

Clause = Callable[[Variant], None]


class ContractError(ValueError):
    """A variant breaks a clause of the contract; the message names it and the difference."""


class _BrokenError(Exception):
    pass


def clause(function: Clause) -> Clause:
    """Make a clause: it runs in float64, without implicit promotion, and its failures name it."""

    @functools.wraps(function)
    def run(variant: Variant) -> None:
        try:
            with (  # whatever the caller's settings are
                jax.enable_x64(True),
                jax.numpy_rank_promotion("raise"),
                jax.numpy_dtype_promotion("strict"),
                # Toys have random trainables, as if training had left something out.
                warnings.catch_warnings(action="ignore", category=TrainingWarning),
            ):
                function(variant)
        except _BrokenError as error:
            raise ContractError(f"{variant} breaks '{function.__name__}': {error}") from None
        except Exception as error:
            if any(f"jax_numpy_{what}_promotion" in str(error) for what in ("rank", "dtype")):
                reason = f"it promotes implicitly: {said(error)}"
                raise ContractError(f"{variant} breaks '{function.__name__}': {reason}") from error
            error.add_note(f"while checking the clause '{function.__name__}' of {variant}")
            raise

    return run


def require(holds: Any, message: str) -> None:
    if not holds:
        raise _BrokenError(message)


def require_close(what: str, got: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    """Compare trees: structures, shapes and dtypes exactly, numbers to a relative tolerance."""
    require_same_form(what, got, wanted)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    for mine, theirs in pairs:
        size = max(1.0, float(np.max(np.abs(theirs), initial=0)))
        difference = float(np.max(np.abs(np.subtract(mine, theirs)), initial=0)) / size
        require(  # written so that NaN fails
            difference <= tolerance, f"{what} differs by {difference:.2g} (at most {tolerance:.0e})"
        )


def require_identical(what: str, got: Any, wanted: Any) -> None:
    """Compare trees bit by bit."""
    require_same_form(what, got, wanted)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        if mine.tobytes() != theirs.tobytes():
            count = int(np.sum(mine != theirs))
            require(False, f"{what} differs in {count} of {mine.size} numbers (expected: none)")


def require_same_form(what: str, got: Any, wanted: Any) -> None:
    mine, theirs = jax.tree.structure(got), jax.tree.structure(wanted)
    require(mine == theirs, f"{what} has the structure {mine}, expected {theirs}")
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        forms = [f"{jnp.result_type(each)}{list(jnp.shape(each))}" for each in (one, other)]
        require(forms[0] == forms[1], f"{what} is {forms[0]}, expected {forms[1]}")


def quick_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with little optimisation on CPUs: toys take longer to compile than to run."""

    @functools.cache
    def program() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=_cheap(), **options)

    return functools.wraps(function)(lambda *args: program()(*args))


def by_numpy(
    function: Callable[..., Any], static_argnums: int | tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Run the function by NumPy, operation by operation: it would take longer to compile it."""
    static = static_argnums if isinstance(static_argnums, tuple) else (static_argnums,)
    traceable = jax.jit(function, static_argnums=static)  # it caches what it has traced

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        traced = traceable.trace(*args)
        closed, given = traced.jaxpr, [x for n, x in enumerate(args) if n not in static]
        results = ByNumpy(wide=False)(closed.jaxpr, closed.consts, jax.tree.leaves(given))
        forms, form = jax.tree.flatten(traced.out_info)
        typed = [
            x if is_key(x) else np.array(x, each.dtype, order="C")
            for x, each in zip(results, forms, strict=True)
        ]
        return jax.tree.unflatten(form, typed)

    return run


@functools.cache
def _cheap() -> dict[str, Any]:
    """Options that make compiling cheap, as far as this version of XLA has them."""
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, Any] = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }

    def known(option: tuple[str, Any]) -> bool:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options=dict([option])).lower().compile()
            return True
        return False

    return dict(filter(known, options.items()))


def draws_random_numbers(function: Callable[..., Any], *args: Any) -> bool:
    return "random_bits" in str(jax.make_jaxpr(function)(*args))
