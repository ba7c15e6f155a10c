"""Small trials that differ in all that they may, and the program that trains them together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lora_jax as lj
import variants
from lora_jax.training import optim, trial_program
from lora_jax.training.masking import share, union, widen
from lora_jax.training.step import TrainState, cross_entropy, make_step


@dataclasses.dataclass
class Trial:
    """What may differ between the trials of a program."""

    learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 10.0
    seed: int = 0
    settings: dict = dataclasses.field(default_factory=dict)


TRIALS = (
    Trial(
        learning_rate=0.2,
        warmup=3,
        seed=1,
        settings={"dropout": 0.3, "learning_rate_ratio": 2.0},
    ),
    Trial(
        weight_decay=0.1,
        clip=0.05,
        seed=4,
        settings={"rank": 3, "alpha": 8.0, "dropout": 0.5, "learning_rate_ratio": 0.5},
    ),
    Trial(settings={"rank": 1, "alpha": 3.0, "dropout": 0.1, "learning_rate_ratio": 4.0}),
)
"""All that may differ."""


def forward(params, x):
    def layer(x, kernel):
        return jax.nn.tanh(x @ kernel) + x, None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["out"] + params["bias"][None]


def parameters(seed=0):
    """The base is that of all trials, a head (`bias`) is of each one's own."""
    keys = jax.random.split(jax.random.key(7), 2)
    return {
        "layers": jax.random.normal(keys[0], (2, 6, 6)) / 2,
        "out": jax.random.normal(keys[1], (6, 3)),
        "bias": jax.random.normal(jax.random.key(seed), (3,)),
    }


@dataclasses.dataclass
class Made:
    adapted: lj.Adapted
    trainable: dict
    frozen: lj.Frozen


def make(trial, names="lora"):
    """The model adapted by one method, or its layers by one and what follows by another."""
    settings = {"rank": 2, **trial.settings} if names != "full" else {}
    methods = [variants.make(name, **settings) for name in names.split(",")]
    targets = dict(zip(("layers", "out"), methods, strict=False))
    targets = targets if len(methods) > 1 else {"all-linear": methods[0]}
    adapted = lj.adapt(forward, targets=targets, also_train=["bias"] if names != "full" else ())
    key = jax.random.key(trial.seed)
    return Made(adapted, *adapted.init(key, parameters(trial.seed), jnp.zeros((1, 6))))


def batches(trial, start=0, size=8):
    step = start
    while True:
        rng = np.random.default_rng([trial.seed, step])
        x = rng.normal(size=(size, 6))
        dtype = jnp.result_type(float)
        weight = np.ones(size, dtype)
        weight[size - step % 3 :] = 0
        yield {"x": x.astype(dtype), "label": (x.sum(1) > 0).astype(np.int32), "weight": weight}
        step += 1


def sgd(hyper):
    rate = optim.traceable_schedule("linear", hyper["learning_rate"], 10, hyper["warmup"])
    return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), optax.sgd(rate))


def adam(hyper):
    rate = optim.traceable_schedule("linear", hyper["learning_rate"], 40, hyper["warmup"])
    return optim.adamw(rate, weight_decay=hyper["weight_decay"], clip=None)


def hyper_of(trial):
    return {n: getattr(trial, n) for n in ("learning_rate", "weight_decay", "warmup", "clip")}


def predict_with(adapted):
    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    return predict


def build(all_trials, execution, names="lora", optimizer=sgd):
    """The program of trials, their states, and what each of them is like alone."""
    made = [make(trial, names) for trial in all_trials]
    rules = zip(*(each.adapted.rules for each in made), strict=True)
    rules = tuple((rule[0][0], union([variant for _, variant in rule])) for rule in rules)
    adapted = dataclasses.replace(made[0].adapted, rules=rules)
    like = jax.eval_shape(adapted.init, jax.random.key(0), parameters(), jnp.zeros((1, 6)))
    shared = [share(each.frozen, made[0].frozen) for each in made]
    wide = [widen(each.trainable, frozen, like) for each, frozen in zip(made, shared, strict=True)]
    step = make_step(adapted, predict_with(adapted), cross_entropy)
    states = [
        TrainState.create(adapted, optimizer(hyper_of(t)), w, f, jax.random.key(t.seed + 100))
        for t, (w, f) in zip(all_trials, wide, strict=True)
    ]

    def traced(hyper, state, frozen, batch):
        return step(optimizer(hyper), hyper["clip"], state, frozen, batch)

    hyper = [jax.tree.map(lambda x: jnp.asarray(x, float), hyper_of(t)) for t in all_trials]
    frozen = [each for _, each in wide]
    return trial_program.make_program(execution, traced, frozen, hyper), states, made


@functools.cache
def built(execution):
    """Of TRIALS with Adam: compiled once, with states to copy."""
    return build(TRIALS, execution, optimizer=adam)


def assert_close(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.shape == wanted.shape
        np.testing.assert_allclose(mine, wanted, **tolerance)
