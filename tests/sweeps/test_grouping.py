"""Trials of users' variants share a program only where it computes what each computes alone."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import lora_jax as lj
from configs import common, quickstart
from experiments.setup.config import parse
from experiments.setup.task_and_model import TaskAndModel
from experiments.sweeps.grouping import AbstractRun, split
from lora_jax.training.masking import union
from lora_jax.training.step import cross_entropy
from variants.adalora import AdaLoRA
from variants.lora import LoRA

NAMES = ("scale", "t_init", "alpha", "dropout", "d_init", "rank", "max_rank", "beta1", "my_number")
"""Names that variants of the library have for other things, and one that none has."""

# -- what a variant may do with a setting ---------------------------------------------------------

INPUTS = ("constant", "start", "rate")
"""Where a setting ends up in arrays that a program takes."""
READ = ("weight", "branch", "array", "dot", "length", "penalty", "update", "gradient")
"""Where a method reads it from `self` while it is traced."""
SHORT, LONG = 2, 3
"""Of rows; at one of them `length` reads it."""


def number(value: Any) -> float:
    return float(len(value)) if isinstance(value, str) else float(value)


class Users(lj.Variant):
    """W' = W + a b^T, with settings that do something else each, by `uses`, (name, what)."""

    uses: tuple[tuple[str, str], ...] = ()

    def what(self, kind: str) -> list[float]:
        return [number(getattr(self, name)) for name, use in self.uses if use == kind]

    def init(self, key, base):
        a = jnp.full(base.shape[0], 0.1 + sum(self.what("start")))
        constants = {"factor": jnp.asarray(1 + sum(self.what("constant")))}
        constants["rate"] = jnp.asarray(1 + sum(self.what("rate")))
        return lj.Factors({"a": a, "b": jnp.zeros(base.shape[1])}, constants)

    def weight(self, base, factors):
        a, b = factors.trainable["a"], factors.trainable["b"]
        a = a * factors.constants["factor"]
        for value in self.what("weight"):
            a = a * (1 + value)
        for value in self.what("branch"):
            a = jnp.tanh(a) if value > 2 else a
        for value in self.what("array"):
            a = a + np.full(a.shape, value, a.dtype)
        for value in self.what("gradient"):
            a = slower(1 + value)(a)
        return base.dense() + a[:, None] * b[None]

    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors)
        if x.shape[-2] == LONG:
            y = y * (1 + sum(self.what("length")))
        return y * (1 + sum(self.what("dot")))

    def penalty(self, factors):
        weight = sum(self.what("penalty"))
        return weight * sum(jnp.square(each.trainable["a"]).sum() for each in factors.values())

    def learning_rates(self, constants):
        return {path: {"b": each["rate"]} for path, each in constants.items()}

    def update(self, state, before, after, grads, step):
        shrink = 1 / (1 + sum(self.what("update")))
        return state, {p: {n: shrink * x for n, x in f.trainable.items()} for p, f in after.items()}

    def count(self, shape):
        return sum(shape)


def slower(rate):
    """The identity with its gradient times a number of Python's."""

    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (rate * g,))
    return f


KINDS = {
    "int": st.integers(0, 4),
    "float": st.floats(0, 4),
    "str": st.sampled_from(["", "xx", "xxx"]),
}


@st.composite
def pairs(draw):
    """A class with up to three settings of any name and kind, and two variants of it."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    kinds_of_use = st.sampled_from(INPUTS) | st.sampled_from(READ)  # as often each
    uses = tuple((name, draw(kinds_of_use)) for name in names)
    kinds = [draw(st.sampled_from(sorted(KINDS))) for _ in names]
    fields = [(name, Any, dataclasses.field(default=0)) for name in names]
    space = {"uses": uses}
    kind: Any = dataclasses.make_dataclass(
        "Mine", fields, bases=(Users,), namespace=space, frozen=True
    )
    return tuple(
        kind(**{n: draw(KINDS[k]) for n, k in zip(names, kinds, strict=True)}) for _ in range(2)
    )


# -- a model to adapt -----------------------------------------------------------------------------


def forward(params, ids, mask, types):
    return jnp.tanh(params["table"][ids] @ params["w"]).mean(1) @ params["head"]


PARAMS = {
    "table": jax.random.normal(jax.random.key(0), (7, 6)),
    "w": jax.random.normal(jax.random.key(1), (6, 5)),
    "head": jax.random.normal(jax.random.key(2), (5, 2)),
}
IDS = jnp.arange(12, dtype=jnp.int32).reshape(4, LONG) % 7
OPTIMIZER = {"learning_rate": 0.1, "weight_decay": 0.0, "b2": 0.99, "warmup_ratio": 0.0}
CONFIG = quickstart.get_config().to_dict() | {
    "optimizer": common.optimizer(**OPTIMIZER, schedule="constant").to_dict(),
    "also_train": (),
    "model": common.model("none", dropout=False).to_dict(),
}


def batch(tokens):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return dict.fromkeys(names, jax.ShapeDtypeStruct((4, tokens), jnp.int32)) | {
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((4,), jnp.float32),
    }


def abstract_run(trained, scored, eval_forward=None):
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    batches = [tuple(map(batch, lengths)) for lengths in (trained, scored)]
    texts: Any = types.SimpleNamespace(loss=cross_entropy)
    loaded = TaskAndModel(texts, lambda key: (forward, params), (), eval_forward=eval_forward)
    return AbstractRun(parse(CONFIG), loaded, 5, *batches)


def share(*variants, trained=(SHORT,), scored=(SHORT,)):
    return len(split(abstract_run(trained, scored), [(("w", each),) for each in variants])) == 1


def step(variant, trainable, frozen):
    """What training makes of a variant's factors: loss, gradient, the rates, and after `update`."""
    adapted = lj.adapt(forward, variant, "w")
    frozen = dataclasses.replace(adapted.init(jax.random.key(0), PARAMS, IDS, IDS, IDS)[1],
                                 constants=frozen.constants, shared=frozen.shared)  # fmt: skip

    def loss(trainable):
        outputs = adapted.apply(trainable, frozen, IDS, IDS, IDS)
        return jnp.square(outputs).sum() + adapted.penalty(trainable, frozen)

    value, grads = jax.value_and_grad(loss)(trainable)
    state = adapted.init_state(trainable, frozen)
    after = adapted.update(state, trainable, trainable, grads, 0, frozen)
    constants = {path: dict(each) for path, each in frozen.constants.items()}
    return value, grads, variant.learning_rates(constants), after[1]


@given(pairs().filter(lambda pair: pair[0] != pair[1]))  # of equal ones nothing is to be seen
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_a_program_computes_of_each_trial_what_it_is_alone(pair):
    first, second = pair
    differ = {use for name, use in first.uses if getattr(first, name) != getattr(second, name)}
    if not share(first, second, trained=(SHORT,), scored=(LONG,)):
        assert differ & set(READ)  # nothing is kept apart by its name
        return
    trainable, frozen = lj.adapt(forward, second, "w").init(
        jax.random.key(3), PARAMS, IDS, IDS, IDS
    )
    trainable = jax.tree.map(lambda x: x + 0.3, trainable)
    alone, shared = (step(each, trainable, frozen) for each in (second, union(pair)))
    for mine, wanted in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class RankRead(LoRA):
    """The scale is made while computing."""

    def scales(self, factors):
        return super().scales(factors) * self.rank


@dataclasses.dataclass(frozen=True)
class Centred(LoRA):
    """Rows are known to `update`, of whose state nothing is tried."""

    def update(self, state, before, after, grads, step):
        less = {p: {n: x - x.mean(-2, keepdims=True) for n, x in f.trainable.items()}
                for p, f in after.items()}  # fmt: skip
        return state, less


@dataclasses.dataclass(frozen=True)
class Counted(LoRA):
    def dot(self, x, base, factors, *, dropout_key=None):
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return y * factors.trainable["a"].shape[0]


@dataclasses.dataclass(frozen=True)
class Divided(LoRA):
    """Rows count in what the optimiser gets, and nowhere else."""

    preconditions = True

    def precondition(self, gradients, factors):
        return {name: x / len(x) for name, x in gradients.items()}


@pytest.mark.parametrize("kind", [Centred, Counted, Divided])
def test_ranks_that_a_method_knows_of_are_apart(kind):
    assert not share(kind(rank=2), kind(rank=3))
    assert share(kind(rank=2), kind(rank=2, alpha=3.0))


@dataclasses.dataclass(frozen=True)
class Hidden(LoRA):
    """A setting that neither `==` nor `repr` tells of."""

    rank: int = 2
    gain: Any = dataclasses.field(default=1.0, compare=False, repr=False)
    where: str = "weight"

    def scales(self, factors):
        scale = super().scales(factors)
        if self.where == "host":
            shape = jax.ShapeDtypeStruct(scale.shape, scale.dtype)
            return jax.pure_callback(self.on_host, shape, jax.lax.stop_gradient(scale))
        return scale * (2.0 if self.where == "kind" and isinstance(self.gain, float) else self.gain)

    def on_host(self, scale):
        return np.asarray(scale) * np.float32(self.gain)

    def dot(self, x, base, factors, *, dropout_key=None):
        mode = "scored" if dropout_key is None else "trained"
        if self.where in ("scored", "trained") and (mode, x.shape[-2]) != (self.where, LONG):
            return base.dot(x)
        return super().dot(x, base, factors, dropout_key=dropout_key)


@pytest.mark.parametrize("where", ["weight", "host", "kind"])
def test_what_equality_does_not_tell_is_traced(where):
    assert share(Hidden(where=where), Hidden(where=where, alpha=3.0)) == (where != "host")
    assert not share(Hidden(gain=1, where=where), Hidden(gain=1.0 + (where != "kind"), where=where))


@dataclasses.dataclass(frozen=True)
class Told(Hidden):
    """Variants of different settings are not equal."""

    gain: Any = 1.0


@dataclasses.dataclass(frozen=True)
class Jitted(LoRA):
    """What is traced of one is taken for any that is equal to it."""

    rank: int = 2
    gain: Any = dataclasses.field(default=1.0, compare=False)

    @functools.partial(jax.jit, static_argnums=0)
    def scales(self, factors):
        return super().scales(factors) * self.gain


NOTED = {}


@dataclasses.dataclass(frozen=True)
class Noted(LoRA):
    """Reads what was noted of the one that was made last."""

    rank: int = 2
    gain: Any = 1.0

    def __post_init__(self):
        super().__post_init__()
        NOTED["gain"] = self.gain

    def scales(self, factors):
        return super().scales(factors) * NOTED["gain"]


@pytest.mark.parametrize(
    "one, other",
    [
        (Jitted(gain=1.0), Jitted(gain=5.0)),
        (Jitted(gain=1), Jitted(gain=1.0)),
        (Noted(gain=1.0), Noted(gain=5.0)),
    ],
)
def test_what_is_kept_outside_of_a_variant_is_not_taken_for_another_ones(one, other):
    assert not share(one, other)
    assert share(one, dataclasses.replace(one, alpha=3.0))


@pytest.mark.parametrize("where", ["trained", "scored"])
def test_all_lengths_of_training_and_of_evaluation_are_traced(where):
    pair = [Told(gain=gain, where=where) for gain in (1.0, 2.0)]
    lengths = {"trained": (SHORT,), "scored": (SHORT,)}
    assert share(*pair, **lengths)
    assert not share(*pair, **{**lengths, where: (SHORT, LONG)})


def test_another_forward_pass_of_evaluation_is_traced():
    def evaluated(params, ids, mask, types):
        return forward(params, jnp.pad(ids, ((0, 0), (0, LONG - SHORT))), mask, types)

    other = abstract_run((SHORT,), (SHORT,), evaluated)
    pair = [(("w", Told(gain=gain, where="scored")),) for gain in (1.0, 2.0)]
    assert len(split(other, pair)) == 2


@dataclasses.dataclass(frozen=True)
class Broken(LoRA):
    rank: int = 2

    def __post_init__(self):
        pass

    def dot(self, x, base, factors, *, dropout_key=None):
        assert self.alpha < 3
        return super().dot(x, base, factors, dropout_key=dropout_key)


def test_what_cannot_be_traced_stays_alone():
    chosen = [Broken(alpha=1.0), Broken(alpha=9.0), Broken(alpha=2.0), Broken(rank=99)]
    parts = split(abstract_run((SHORT,), ()), [(("w", each),) for each in chosen])
    assert sorted(parts) == [[0, 2], [1], [3]]


def test_ranks_share_where_masked_rows_are_nothing():
    assert share(LoRA(rank=2), LoRA(rank=3, alpha=3.0), LoRA(rank=4, scale="alpha"))
    assert not share(RankRead(rank=2), RankRead(rank=3))
    assert not share(AdaLoRA(rank=2, target_rank=1), AdaLoRA(rank=3, target_rank=1))
    assert share(AdaLoRA(rank=3, target_rank=1), AdaLoRA(rank=3, target_rank=2, orthogonality=0.5))
