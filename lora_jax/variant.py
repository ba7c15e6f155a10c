"""The contract of a variant: what a LoRA method must define for one weight matrix.

A variant is its effective weight, W' = weight(W, factors), which the model uses in the place of a
frozen W. All else here makes factors or computes with W' faster, and is tested against `weight`.

Its author sees one matrix of shape `(in, out)`, used as `x @ W`. Weights with an extra axis for
heads, transposed and stacked weights are brought into that form; `jax.vmap` maps over stacks.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.base import Base, Need, Operand, Seen, contract, wide
from lora_jax.peft_format import Config, Layouts, Peft, Settings, loaded, stored

if TYPE_CHECKING:
    from lora_jax.base import WeightUse

# All that a variant's file imports, in one place.
__all__ = (
    "Base",
    "Factors",
    "Operand",
    "Pruned",
    "Suggested",
    "TrainingWarning",
    "Variant",
    "wide",
)


class Factors(NamedTuple):
    """The arrays that a variant adds to one matrix; stacked axes, if any, come first."""

    trainable: dict[str, Array]
    constants: dict[str, Array]
    """Never trained. Every number that a study may vary (scale, keep probability, ...) is here."""


class TrainingWarning(UserWarning):
    """Training seems to have left something out (see `Variant.doubt`)."""


class Pruned(NamedTuple):
    """What is left of one adapter after pruning (see `Variant.prune`)."""

    variant: "Variant"
    factors: Factors
    ranks: tuple[int, ...]
    """The rank of each matrix of the stack, in order; one number where there is no stack."""


class Suggested(NamedTuple):
    """What a config or a study takes for a method where it is open; training does not read it.

    The defaults are LoRA's, which were not tried with methods whose files give none.
    """

    small: float = 2e-3
    """A learning rate for a small encoder (all-MiniLM-L6-v2), found with a trial or two."""
    large: float = 4e-4
    """A learning rate for larger models, untuned."""
    tried: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Rates for a study on a small encoder, which tries a grid around the middle one."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """Fields of the variant, such as its size, that a study sets."""
    targets: tuple[Any, ...] = ()
    """What the method is meant to adapt, as patterns or (pattern, settings); empty: all linears."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A LoRA method: static, hashable settings, and pure functions of one weight matrix.

    A subclass must define `init`, `weight` and `count`; other methods have slower defaults.
    Products have the dtype of `base.dot(x)`: that of `x`, or `base.accumulate` if it is set.
    """

    adapts: ClassVar[bool] = True
    """False for methods without factors, which only choose the parameters that train (`trains`)."""

    title: ClassVar[str] = ""
    """The method's name in tables and plots, if that is not the name of the class."""

    suggested: ClassVar[Suggested] = Suggested()
    """What studies take where their configs leave it open."""

    peft: ClassVar[str] = ""
    """The method in Hugging Face PEFT, as written there: `LoraConfig(use_dora=True)`; or empty."""

    peft_layouts: ClassVar[Layouts] = MappingProxyType({})
    """What PEFT calls each trained factor in files, and its shape there."""

    peft_config: ClassVar[Config | None] = None
    """What PEFT calls the method's settings; None where `to_peft` and `from_peft` say it.

    Subclasses of `LowRank` are always written as plain LoRA, unless they give `to_peft` themselves.
    """

    remade: ClassVar[tuple[str, ...]] = ()
    """Constants that files leave out, as `init` or `init_shared` makes them again from the base.

    If they are drawn, `jax.random.key_data(key)` must be among the constants as `init_key`; a file
    keeps that. What does not come out the same, bit by bit, is saved.
    """

    of_base: ClassVar[tuple[str, ...]] = ()
    """Constants that say something of the base alone, so that another base has its own."""

    shared_trainable: ClassVar[tuple[str, ...]] = ()
    """Arrays of `init_shared` that train; they are among the trainables of every matrix."""

    @property
    def differs_at_init(self) -> str:
        """Why the adapted function differs from the base's at the start; empty if it does not."""
        return ""

    @property
    def settled(self) -> int:
        """The step from which adapters have their final size; 0 if they never shrink."""
        return 0

    # -- of one matrix -----------------------------------------------------------------------------

    @property
    def needs(self) -> Need | None:
        """What `init` has to see of a weight's gradient or inputs; it finds that in `base.seen`."""
        return None

    def validate(self, shape: tuple[int, int]) -> None:
        """Raise `ValueError` if these settings cannot work for an (in, out) matrix."""

    def to_store(self, base: Base, quantize: Callable[[Array], Array]) -> Array:
        """The dense (in, out) matrix that is quantised in the place of W; W itself by default.

        Args:
          base: W, stored densely.
          quantize: gives what a matrix stands for after it was stored.
        """
        return base.dense()

    def init(self, key: Array, base: Base) -> Factors:
        """The starting factors; at least float32, whatever the base's dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define init")

    def weight(self, base: Base, factors: Factors) -> Array:
        """The definition: the dense (in, out) effective weight, in the dtype of the factors."""
        raise NotImplementedError(f"{type(self).__name__} must define weight")

    def count(self, shape: tuple[int, int]) -> int:
        """How many numbers are trained for an (in, out) matrix, beside shared ones."""
        raise NotImplementedError(f"{type(self).__name__} must define count")

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        """`x @ weight`, for x of shape (..., in): override it with a faster equivalent."""
        return contract(x, self.weight(base, factors).astype(base.dtype), 0, base.accumulate)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        """`x @ weight.T`, for x of shape (..., out): by default the transpose of `dot`."""
        zeros = jnp.zeros((*x.shape[:-1], base.shape[0]), x.dtype)
        out, transpose = jax.vjp(lambda z: self.dot(z, base, factors), zeros)
        (y,) = transpose(x.astype(out.dtype))
        return y if base.accumulate is None else y.astype(base.accumulate)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        """`weight[rows]`, for integer rows of any shape within range; the result is (..., out)."""
        return jnp.take(self.weight(base, factors).astype(base.dtype), rows, axis=0, mode="clip")

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        """Plain LoRA that is equal: A (rank, in) and B (rank, out) with `weight` = W + A^T B.

        None for a method whose update has no rank that is fixed by its settings.
        """
        return None

    def as_rescaled_lora(
        self, base: Base, factors: Factors
    ) -> tuple[Array, Array, Array | None] | None:
        """Plain LoRA with rescaled outputs that is equal: A, B and g with `weight` = (W + A^T B) g.

        g, (out,), is None where there is none to multiply by. A bank makes these arrays once for
        each adapter, and computes all adapters that have them together.
        """
        both = self.as_lora(base, factors)
        return None if both is None else (*both, None)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """One matrix's adapter as Hugging Face PEFT stores it, not traced; None if it cannot.

        `lookup` says whether the matrix is an embedding, whose rows are looked up. A method with a
        `peft_config` is one of PEFT's for all other matrices.
        """
        if self.peft_config is None or lookup:
            return None
        arrays = {**factors.constants, **factors.trainable}
        return Peft(self.peft_settings(base, factors), stored(self.peft_layouts, arrays))

    def peft_settings(self, base: Base, factors: Factors) -> dict[str, Any]:
        """PEFT's settings of one matrix's adapter, by `peft_config`."""
        return {} if self.peft_config is None else self.peft_config.written(self, factors.constants)

    @classmethod
    def from_peft(cls, config: Settings) -> "Variant | None":
        """What PEFT's settings mean for a module; None if another method, ValueError if unknown."""
        if cls.peft_config is None or (known := cls.peft_config.read(config)) is None:
            return None
        return cls(**known)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        """The factors of one matrix from PEFT's tensors, in the shapes of `begun`, from `init`."""
        return begun._replace(trainable=loaded(self.peft_layouts, peft.tensors))

    def shared_to_peft(self, shared: dict[str, Array], shapes: Sequence[tuple[int, int]]) -> dict:
        """PEFT's tensors for what all matrices, of these shapes, share; ValueError if none can."""
        return {}

    def shared_from_peft(self, peft: Peft, begun: dict[str, Array]) -> dict[str, Array]:
        """What `init_shared` gave, with PEFT's shared tensors in its place."""
        return begun

    @property
    def adapts_bias(self) -> bool:
        """Whether the bias of an adapted layer, found by its name, becomes `bias` of it."""
        return False

    def bias(self, bias: Array, factors: Factors) -> Array:
        """The effective bias, (out,), of the layer whose matrix has these factors."""
        return bias

    @property
    def preconditions(self) -> bool:
        """Whether `precondition` changes gradients."""
        return False

    def precondition(self, gradients: dict[str, Array], factors: Factors) -> dict[str, Array]:
        """What the optimiser gets in the place of the gradients of the trainables, {name: array}.

        `adapted.optimizer` calls it before each of the optimiser's updates. What gradients are used
        for elsewhere (`update`, their norm) stays as it is. Gradients of shared arrays are no
        matrix's own, and not among them.
        """
        return gradients

    # -- of all matrices of this variant, {path: factors}, stacked axes leading --------------------
    # What trains and is shared is the same under every path, both in what these get and give.

    def init_shared(
        self, key: Array, shapes: Sequence[tuple[int, int]], dtype: Any
    ) -> dict[str, Array]:
        """Arrays that all matrices of this variant share, stored once.

        Every other method finds them among a matrix's constants, or its trainables if
        `shared_trainable` names them, without stacked axes.

        Args:
          shapes: the (in, out) shape of every matrix; each matrix of a stack counts.
          dtype: the widest dtype of their factors.
        """
        return {}

    @property
    def allots(self) -> bool:
        """Whether `allot` may give matrices other settings than these."""
        return False

    def allot(
        self, seen: Sequence[Seen], shapes: Sequence[tuple[int, int]]
    ) -> list["Variant | None"]:
        """The variant of each matrix by what was seen of all of them; None leaves one out.

        Not traced. Each matrix of a stack counts.
        """
        return [self] * len(shapes)

    def learning_rates(
        self, constants: Mapping[str, dict[str, Array]]
    ) -> dict[str, dict[str, Array]]:
        """Learning-rate multipliers, {path: {name: ratio}}, from {path: constants}."""
        return {}

    def penalty(self, factors: Mapping[str, Factors]) -> Array | float:
        """A term to add to the loss."""
        return 0.0

    def init_state(self, factors: Mapping[str, Factors]) -> Any:
        """The state that `update` carries from step to step; None if there is none."""
        return None

    def update(
        self,
        state: Any,
        before: Mapping[str, Factors],
        after: Mapping[str, Factors],
        grads: Mapping[str, dict[str, Array]],
        step: Array,
    ) -> tuple[Any, dict[str, dict[str, Array]]]:
        """After an optimiser step, give the new state and the trainables to continue with."""
        return state, {path: each.trainable for path, each in after.items()}

    def prune(self, state: Any, factors: Mapping[str, Factors]) -> dict[str, Pruned | None]:
        """Smaller adapters with the same effect, for a method that drops parts of its adapters.

        Not traced: it reads `state` (from `init_state` and `update`) to decide sizes. An adapter
        with nothing left becomes None. Not for methods with `shared_trainable`.
        """
        return {}

    def doubt(self, factors: Mapping[str, Factors]) -> str:
        """One line that says what training seems to have left out; empty if nothing."""
        return ""

    def trains(self, path: str, use: "WeightUse", targeted: bool) -> bool:
        """Whether a parameter without an adapter is trained in full."""
        return False

    # -- layers of one stacked weight that differ --------------------------------------------------

    def align(self, others: tuple["Variant", ...]) -> tuple["Variant", ...]:
        """Make variants of different layers equal in structure, so that they can be stacked.

        Raises:
          ValueError: they differ in something that layers of one stack must share.
        """
        for other in others:
            if other != self:
                raise ValueError(f"layers of one stacked weight cannot mix {self} and {other}")
        return others
