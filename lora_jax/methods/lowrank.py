"""Code that the A/B methods share: W' = W + s A^T B, its product, scale rules and settings."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.base import Need, Seen
from lora_jax.files.arrays import to_host
from lora_jax.messages import nearest
from lora_jax.methods import initialization, peft_lora, preconditioning
from lora_jax.methods.checks import (
    require_count,
    require_dropout,
    require_finite,
    require_rank,
    require_ratio,
)
from lora_jax.methods.products import (
    add,
    dropout,
    dropout_constants,
    product,
    ratio_constants,
)
from lora_jax.peft_format import Peft
from lora_jax.variant import Base, Factors, Suggested, Variant, wide

SCALES = {
    "alpha/rank": lambda alpha, rank: alpha / rank,  # Hu et al. 2021, section 4.1
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / math.sqrt(rank),  # Kalajdzievski 2023
    "alpha": lambda alpha, rank: alpha,
}


class LowRankUpdate(Variant):
    """A variant with W' = W + A^T B, whatever A and B are made of; no dense matrix is formed."""

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """A (rank, in) and B (rank, out), scaled, and cast to `dtype`."""
        raise NotImplementedError

    def delta(self, factors: Factors) -> Array:
        """The dense (in, out) update of W."""
        a, b = self.low_rank_factors(factors, next(iter(factors.trainable.values())).dtype)
        return a.T @ b

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        return self.low_rank_factors(factors, wide(base.dtype))

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """Plain LoRA that is equal, where PEFT has not the method."""
        if self.peft_config is not None:
            return super().to_peft(base, factors, lookup)
        if (both := self.as_lora(base, factors)) is None:
            return None
        return peft_lora.as_peft(*both, 1.0, factors, lookup)

    def weight(self, base: Base, factors: Factors) -> Array:
        delta = self.delta(factors)
        return base.dense().astype(delta.dtype) + delta

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        a, b = self.low_rank_factors(factors, x.dtype)
        dropped = dropout(x, factors, dropout_key)
        return add(base.dot(x), product(dropped, a, b, base.accumulate))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        a, b = self.low_rank_factors(factors, x.dtype)
        return base.dot_t(x) + product(x, b, a, base.accumulate)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = self.low_rank_factors(factors, base.dtype)
        hidden = jnp.take(a, rows, axis=1, mode="clip")
        return base.take(rows) + lax.dot_general(hidden, b, (((0,), (0,)), ((), ())))


@dataclasses.dataclass(frozen=True)
class LowRank(LowRankUpdate):
    """A variant with W' = W + scale * A^T B, A of shape (rank, in) and B (rank, out).

    B is stored with the rank first, so that both factors are short and wide; PEFT's `lora_B` is its
    transpose. Settings that papers combine are fields here, so that every A/B method has them; a
    method overrides what it does differently.

    Where the starting factors A0, B0 have an effect (PiSSA, OLoRA), it is subtracted: the base
    stays as it is, and W' = W + scale * (A^T B - A0^T B0), with A0 and B0 among the constants.
    LoRA-One's and LoftQ's are meant, and stay.
    """

    suggested: ClassVar[Suggested] = Suggested(settings={"rank": 8, "alpha": 16.0})
    rows_are_terms: ClassVar[bool] = True
    """Whether each row of A and B adds a term of its own, so that rows of zeros change nothing."""
    additive: ClassVar[bool] = True
    """Whether W' = W + scale * A^T B, which LoftQ, LoRA-One and LoRA-Pro need."""

    rank: int = 8
    """The rows of A and of B."""
    alpha: float = 16.0
    """What the scale s is made of, by the rule that `scale` names."""
    scale: str = "alpha/rank"
    """A key of `SCALES`: `alpha/rank`, `alpha/sqrt(rank)` or `alpha`."""
    initialization: str = "kaiming_uniform"
    """One of the names of `initialization.starting_factors`."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input when a `dropout_key` is given.

    A sweep changes `constants["keep"]`; a probability of 0 sets no such constant.
    """
    learning_rate_ratio: float = 1.0
    """B's learning rate over that of the rest (LoRA+); it is `constants["ratio"]` if not 1."""
    max_rank: int | None = None
    """Rows to allocate, at least `rank`; a 0/1 mask hides those beyond the rank."""
    preconditioner: str = preconditioning.NONE
    """A key of `preconditioning.PRECONDITIONERS`, which `adapted.optimizer` puts to work.

    It changes the gradients of A and B. Other factors (DoRA's magnitudes) keep theirs.
    """
    damping: float = 1e-6
    """What a preconditioner adds to matrices that it inverts; then it is `constants["damping"]`."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(
                f"scale '{self.scale}' is unknown; nearest: {nearest(self.scale, SCALES)}"
            )
        require_rank(self.rank)
        require_finite("alpha", self.alpha)
        if self.max_rank is not None:
            require_count("max_rank", self.max_rank)
        if self.max_rank is not None and self.max_rank < self.rank:
            raise ValueError(f"max_rank {self.max_rank} is below rank {self.rank}")
        require_dropout(self.dropout)
        require_ratio(self.learning_rate_ratio)
        initialization.validate(self.initialization, self.rank, self.alpha)
        preconditioning.validate(self.preconditioner, self.damping, self.alpha)
        if not self.additive:
            if initialization.needs_a_sum(self.initialization):
                raise self._needs_a_sum("initialization")
            if self.preconditioner == preconditioning.LORA_PRO:
                raise self._needs_a_sum("preconditioner")
        if self.allots and self.max_rank is not None:
            raise ValueError(f"initialization '{self.initialization}' takes no max_rank")

    def _needs_a_sum(self, field: str) -> ValueError:
        kind = type(self).__name__
        return ValueError(
            f"{field} '{getattr(self, field)}' is for W + s A^T B, which {kind} is not"
        )

    @property
    def differs_at_init(self) -> str:
        return initialization.differs(self.initialization)

    @property
    def needs(self) -> Need | None:
        return initialization.need(self.initialization, self.rank)

    @property
    def allots(self) -> bool:
        return initialization.divides(self.initialization)

    def validate(self, shape: tuple[int, int]) -> None:
        initialization.validate_fit(self.initialization, self.rank, shape)

    def to_store(self, base: Base, quantize: Callable[[Array], Array]) -> Array:
        if number := initialization.loftq_steps(self.initialization):
            return initialization.loftq_to_store(base, quantize, self.rank, number)
        return super().to_store(base, quantize)

    def scaling(self) -> float:
        """What A^T B is multiplied by; `init` puts it among the constants."""
        return SCALES[self.scale](self.alpha, self.rank)

    def init(self, key: Array, base: Base) -> Factors:
        dtype, name, scale = wide(base.dtype), self.initialization, self.scaling()
        a, b = initialization.starting_factors(name, key, base, self.rank, scale)
        b = jnp.zeros((self.rank, base.shape[1]), dtype) if b is None else b
        rows = self.max_rank or self.rank
        padding = ((0, rows - self.rank), (0, 0))
        trainable = {"a": jnp.pad(a, padding), "b": jnp.pad(b, padding)}
        constants = {"scale": jnp.asarray(scale, dtype)}
        if initialization.moves_the_weight(name) and not initialization.differs(name):
            constants |= {"a0": trainable["a"], "b0": trainable["b"]}
        constants |= dropout_constants(self.dropout, dtype)
        constants |= ratio_constants(self.learning_rate_ratio, dtype)
        if self.preconditions:
            constants["damping"] = jnp.asarray(self.damping, dtype)
        if self.max_rank is not None:
            constants["mask"] = (jnp.arange(rows) < self.rank).astype(dtype)
        return Factors(trainable, constants)

    def allot(
        self, seen: Sequence[Seen], shapes: Sequence[tuple[int, int]]
    ) -> list["Variant | None"]:
        """EVA's ranks, each with the alpha that keeps the scale, and with no rho any more."""
        if not self.allots:
            return super().allot(seen, shapes)
        most = [] if self.needs is None else [self.needs.count(shape) for shape in shapes]
        ranks = initialization.divide(seen, self.rank, most)
        scale = functools.partial(SCALES[self.scale], 1.0)
        return [
            dataclasses.replace(
                self, rank=n, alpha=self.alpha * scale(self.rank) / scale(n), initialization="eva"
            )
            if n
            else None
            for n in ranks
        ]

    def scales(self, factors: Factors) -> Array:
        """The factor of B, a number or of shape (rank, 1); zero for rows beyond the rank."""
        scale = factors.constants["scale"]
        if "mask" in factors.constants:
            scale = (scale * factors.constants["mask"])[:, None]
        return scale

    def scaled_b(self, factors: Factors) -> Array:
        """B (rank, out) times its scales; it costs least to apply them here."""
        return self.scales(factors) * read(factors, "b")

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """Two factors whose product is the update of W, `a.T @ b`, cast to `dtype`.

        With a subtracted start they have twice the rows, A^T B - A0^T B0 = (A - A0)^T B +
        A0^T (B - B0): exactly zero at the start, and no digits are lost in a difference.
        """
        a, b = read(factors, "a"), self.scaled_b(factors)
        if "a0" in factors.constants:
            a0 = factors.constants["a0"]
            # Scale after the difference: otherwise a fused multiply-add leaves rounding errors.
            moved = self.scales(factors) * (read(factors, "b") - factors.constants["b0"])
            a, b = jnp.concatenate([a - a0, a0]), jnp.concatenate([b, moved])
        return a.astype(dtype), b.astype(dtype)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """Plain LoRA, of rank 2r where a start is subtracted: the base stays as it is."""
        if (both := self.as_lora(base, factors)) is None:
            return None
        return self._as_peft(*both, factors, lookup)

    def _as_peft(self, a: Array, b: Array, factors: Factors, lookup: bool, **also: Any) -> Peft:
        scale = float(factors.constants["scale"]) or 1.0
        used = self._used(factors, len(a))
        return peft_lora.as_peft(a[used], b[used] / scale, scale, factors, lookup, **also)

    def _used(self, factors: Factors, rows: int) -> np.ndarray:
        """Which rows count: those of the rank, and as many again where a start is subtracted."""
        mask = factors.constants.get("mask")
        return np.ones(rows, bool) if mask is None else np.resize(to_host(mask) > 0, rows)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        return peft_lora.factors_from(peft, begun, self.rank)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * sum(shape)

    @property
    def preconditions(self) -> bool:
        return self.preconditioner != preconditioning.NONE

    def precondition(self, gradients: dict[str, Array], factors: Factors) -> dict[str, Array]:
        if not self.preconditions:
            return gradients
        constants, a, b = factors.constants, read(factors, "a"), read(factors, "b")
        mine = {name: gradients[name] for name in ("a", "b") if name in gradients}
        changed = preconditioning.precondition(
            self.preconditioner, mine, a, b, constants["scale"], constants["damping"]
        )
        if "mask" in constants:  # rounding must not move the rows beyond the rank, which are zero
            changed = {name: constants["mask"][:, None] * x for name, x in changed.items()}
        return {**gradients, **changed}

    def learning_rates(
        self, constants: Mapping[str, dict[str, Array]]
    ) -> dict[str, dict[str, Array]]:
        return {path: {"b": each["ratio"]} for path, each in constants.items() if "ratio" in each}

    def align(self, others: tuple[Variant, ...]) -> tuple[Variant, ...]:
        ranked = [each for each in others if type(each) is type(self)]

        def at_my_rank(each: LowRank) -> LowRank:
            return dataclasses.replace(each, rank=self.rank, alpha=self.alpha, max_rank=None)

        mine = at_my_rank(self)
        if len(ranked) < len(others) or any(at_my_rank(each) != mine for each in ranked):
            return super().align(others)
        rows = max(each.max_rank or each.rank for each in ranked)
        # Ranks that are not divided yet (of shapes alone) stay as they are set.
        begins = "eva" if self.allots else self.initialization
        return tuple(
            dataclasses.replace(each, max_rank=rows, initialization=begins) for each in ranked
        )


def read(factors: Factors, name: str) -> Array:
    """A factor, whether it is trained or frozen (LoRA-FA)."""
    return factors.trainable[name] if name in factors.trainable else factors.constants[name]
