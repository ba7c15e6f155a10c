"""One training step as a pure function of state, frozen weights and batch."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax import contrib as optax_contrib

from lora_jax.base import wide
from lora_jax.partition import is_array
from lora_jax.transform.adapt import Adapted
from lora_jax.transform.adapted_optimizer import ForWeights, MasterState, at_masters
from lora_jax.transform.placement import (
    DONATED,
    Frozen,
    Trainable,
    require_key,
    require_order,
)

Batch = Mapping[str, Any]


Predict = Callable[[Trainable, Frozen, Batch, Array | None], Array]
"""`(trainable, frozen, batch, rng) -> outputs`; without `rng` nothing is random (evaluation)."""


Loss = Callable[[Array, Batch], Array]
"""`(outputs, batch) -> (B,)`, the loss of each example."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """An exponential moving average of trainables, evaluated and saved in their place.

    It starts at zero, and is divided by the sum of its weights, as Adam's moments are (Kingma and
    Ba 2015, arXiv 1412.6980, section 3). After n steps with the decay d it is
    sum_k d^(n-k) w_k / sum_k d^(n-k), where w_k are the weights after step k. The weights before
    the first step do not count. After one step the average is w_1.
    """

    sums: Trainable
    """The weighted sums, in float32 at least."""
    weight: Array
    """The sum of all weights in `sums`."""

    @classmethod
    def zero(cls, trainable: Trainable) -> "Average":
        """The average of nothing yet."""
        sums = jax.tree.map(lambda x: jnp.zeros_like(x, wide(x.dtype)), trainable)
        return cls(sums, jnp.zeros(()))

    def add(self, trainable: Trainable, decay: Array | float) -> "Average":
        """The average with the trainables after a further step."""

        def mean(old: Array, new: Array) -> Array:
            share = jnp.asarray(decay, old.dtype)
            return share * old + (1 - share) * new.astype(old.dtype)

        one = jnp.ones_like(self.weight)
        return Average(jax.tree.map(mean, self.sums, trainable), mean(self.weight, one))

    def value(self, trainable: Trainable) -> Trainable:
        """The average in the dtypes of `trainable`, which it is itself before the first step."""

        def divided(total: Array, now: Array) -> Array:
            weight = self.weight.astype(total.dtype)
            mean = total / jnp.where(weight > 0, weight, jnp.ones_like(weight))
            return jnp.where(weight > 0, mean, now.astype(total.dtype)).astype(now.dtype)

        return jax.tree.map(divided, self.sums, trainable)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes; the frozen weights are not part of it."""

    step: Array
    trainable: Trainable
    opt_state: optax.OptState
    variant_state: Any
    rng: Array
    average: Average | None = None
    """The moving average of the trainables; None if there is none."""

    @classmethod
    def create(
        cls,
        adapted: Adapted,
        tx: optax.GradientTransformation | ForWeights,
        trainable: Trainable,
        frozen: Frozen,
        rng: Array,
        averaged: bool = False,
    ) -> "TrainState":
        """The state before the first step; `averaged` gives it a moving average.

        The state has a copy of `rng`, as a step deletes the state that it gets.
        """
        _require_adapted(adapted, "TrainState.create(adapted, tx, ...)")
        require_order(trainable, frozen)
        require_key(rng, "TrainState.create(..., rng): ")
        opt_state = adapted.optimizer(tx, frozen).init(trainable)
        variant_state = adapted.init_state(trainable, frozen)
        average = Average.zero(trainable) if averaged else None
        own = jnp.array(rng, copy=True)
        return cls(jnp.zeros((), jnp.int32), trainable, opt_state, variant_state, own, average)


def eval_params(state: TrainState) -> Trainable:
    """The trainables to evaluate and to save: an average if the state has one."""
    if state.average is not None:
        return _value(state.average, state.trainable)
    inner = state.opt_state.inner if isinstance(state.opt_state, MasterState) else state.opt_state
    if isinstance(inner, optax_contrib.ScheduleFreeState):
        return _schedule_free(state.opt_state, state.trainable)
    return state.trainable


@jax.jit
def _value(average: Average, trainable: Trainable) -> Trainable:
    return average.value(trainable)


@jax.jit
def _schedule_free(opt_state: Any, trainable: Trainable) -> Trainable:
    exact = trainable
    if isinstance(opt_state, MasterState):
        opt_state, exact = opt_state.inner, at_masters(opt_state, trainable)
    found = optax_contrib.schedule_free_eval_params(opt_state, exact)
    return jax.tree.map(lambda x, now: x.astype(now.dtype), found, trainable)


Step = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]


def _require_adapted(adapted: Any, where: str) -> None:
    if not isinstance(adapted, Adapted):
        given = type(adapted).__name__
        raise ValueError(f"{where}: expected what `adapt` gives first, not a {given}")


def cross_entropy(logits: Array, batch: Batch) -> Array:
    """The loss of each example of a classification: logits (B, C), labels (B,) integers."""
    labels = _labels(logits, batch)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"batch['label'] is of {labels.dtype}: expected classes, as integers")
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(outputs: Array, batch: Batch) -> Array:
    """The loss of each example of a regression: outputs (B, 1), labels (B,) floats."""
    return jnp.square(outputs[:, 0] - _labels(outputs, batch))


def _labels(outputs: Array, batch: Batch) -> Array:
    labels = _entry(batch, "label", "the labels")
    if not is_array(labels):
        raise ValueError(f"batch['label'] is a {type(labels).__name__}: expected an array")
    if jnp.shape(labels) != outputs.shape[:1]:
        raise ValueError(
            f"batch['label'] has shape {jnp.shape(labels)}, and the outputs {outputs.shape}: "
            "expected one label for each row of the outputs"
        )
    return labels


def _entry(batch: Batch, name: str, what: str) -> Any:
    if not isinstance(batch, Mapping) or name not in batch:
        has = ", ".join(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"the batch has no '{name}' ({what}, one for each row); it has {has}")
    return batch[name]


def make_train_step(
    adapted: Adapted,
    tx: optax.GradientTransformation | ForWeights,
    predict: Predict,
    loss: Loss,
    accumulate: int = 1,
    clip: float | None = None,
    shardings: TrainState | None = None,
    ema: float | None = None,
) -> Step:
    """The jitted step `(state, frozen, batch) -> (state, metrics)`; it donates the state.

    Only trainables have a gradient. Rows whose `batch["weight"]` is zero do not count. So a batch
    that is padded with such rows, or taken in `accumulate` parts to save memory, gives the same
    gradient.

    Args:
      clip: the greatest norm of the gradient that `tx` and `adapted.update` get. If `tx` clipped
        instead, `update` (AdaLoRA's scores) would get the gradient before clipping.
        `metrics["grad_norm"]` is the norm before clipping.
      shardings: those of the state on a mesh, before and after (`Layout.like`).
      ema: the decay of the moving average of the trainables, of a state that has one.

    Raises:
      ValueError: a number out of its range; later, a batch that `accumulate` does not divide.
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}; None does not clip")
    if isinstance(accumulate, bool) or not isinstance(accumulate, Integral) or accumulate < 1:
        raise ValueError(f"accumulate must be an integer of at least 1, got {accumulate!r}")
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema must be at least 0 and below 1, got {ema}; None takes no average")
    _require_adapted(adapted, "make_train_step(adapted, tx, ...)")
    _require_taken("predict", predict, "trainable", "frozen", "batch", "rng")
    _require_taken("loss", loss, "outputs", "batch")
    step = make_step(adapted, predict, loss, accumulate)

    def one(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict]:
        return step(tx, clip, state, frozen, batch, ema)

    return _Donating(jax.jit(one, donate_argnums=0, out_shardings=(shardings, None)))


def _require_taken(name: str, function: Any, *arguments: str) -> None:
    """Raise a ValueError if a function cannot be called with these arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise ValueError(
            f"make_train_step(..., predict, loss): {name} must take ({', '.join(arguments)})"
        ) from None
    except ValueError:  # a function of C, whose arguments are not known
        return


@dataclasses.dataclass(frozen=True)
class _Donating:
    """A jitted step, which says what to do where it gets a state that it took over before."""

    jitted: Any

    def __call__(self, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict]:
        try:
            return self.jitted(state, frozen, batch)
        except (RuntimeError, ValueError) as error:
            if "been deleted" not in str(error):
                raise
            raise ValueError(DONATED) from None
        except TypeError:
            for name, values in batch.items() if isinstance(batch, Mapping) else ():
                if not isinstance(values, jax.Array) and np.asarray(values).dtype.kind in "OSU":
                    raise ValueError(
                        f"batch['{name}'] has texts or other objects: expected numbers, such as "
                        "the index of each class"
                    ) from None
            raise

    def __getattr__(self, name: str) -> Any:
        """The rest of what a jitted function has, such as `lower`."""
        return getattr(self.jitted, name)


def make_step(
    adapted: Adapted, predict: Predict, loss: Loss, accumulate: int = 1
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The step as a function to trace, `(tx, clip, state, frozen, batch, ema) -> (state, metrics)`.

    The numbers inside `tx`, `clip` and `ema` may be traced: they may differ between trials of a
    program.
    """

    def objective(
        trainable: Trainable, frozen: Frozen, batch: Batch, rng: Array, total: Array
    ) -> Array:
        each = loss(predict(trainable, frozen, batch, rng), batch)
        if each.shape != (rows := jnp.shape(batch["weight"])):
            raise ValueError(
                f"the loss has shape {each.shape}, and batch['weight'] {rows}: "
                "expected one number for each row of the batch"
            )
        penalty = adapted.penalty(trainable, frozen) / accumulate
        return (each * batch["weight"]).sum() / total + penalty

    gradient = jax.value_and_grad(objective)

    def over_parts(
        trainable: Trainable, frozen: Frozen, batch: Batch, rng: Array, total: Array
    ) -> tuple[Array, Trainable]:
        def part(sums: Any, part_and_rng: Any) -> tuple[Any, None]:
            result = gradient(trainable, frozen, *part_and_rng, total)
            return jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, result), None

        if (rows := len(batch["weight"])) % accumulate:
            raise ValueError(f"a batch of {rows} rows has no {accumulate} equal parts (accumulate)")
        # A part has every `accumulate`-th row: neighbours are on one device of a mesh, so that each
        # part is on all devices.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]), batch)
        parts = jax.tree.map(lambda x: x.swapaxes(0, 1), parts)
        start = jax.tree.map(lambda x: jnp.zeros_like(x, wide(x.dtype)), (total, trainable))
        sums, _ = jax.lax.scan(part, start, (parts, jax.random.split(rng, accumulate)))
        return jax.tree.map(lambda x, like: x.astype(like.dtype), sums, (total, trainable))

    def step(
        tx: optax.GradientTransformation | ForWeights,
        clip: Array | float | None,
        state: TrainState,
        frozen: Frozen,
        batch: Batch,
        ema: Array | float | None = None,
    ) -> tuple[TrainState, dict]:
        if not isinstance(state, TrainState) or not isinstance(frozen, Frozen):
            given = ", ".join(type(each).__name__ for each in (state, frozen, batch))
            raise ValueError(f"expected step(state, frozen, batch), got ({given})")
        rng = jax.random.fold_in(state.rng, state.step)
        run = gradient if accumulate == 1 else over_parts
        total = jnp.maximum(_entry(batch, "weight", "0 for padding, else 1").sum(), 1e-6)
        grads: Any
        value, grads = run(state.trainable, frozen, batch, rng, total)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        if clip is not None:
            grads, _ = optax.clip_by_global_norm(clip).update(grads, optax.EmptyState())
        tx = adapted.optimizer(tx, frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        after: Any = optax.apply_updates(state.trainable, updates)
        variant_state, trainable = adapted.update(
            state.variant_state, state.trainable, after, grads, state.step, frozen
        )
        average = state.average
        if (average is None) != (ema is None):
            raise ValueError("ema is for a state with averaged=True, and such a state needs it")
        if average is not None and ema is not None:
            average = average.add(trainable, ema)
        new = TrainState(state.step + 1, trainable, opt_state, variant_state, state.rng, average)
        return new, metrics

    return step
