"""Training steps of small decoders, alone and on meshes: what tests compare, and compile."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from small_decoder import random_decoder, random_ids

import lora_jax as lj
import variants
from lora_jax.models.parts.family import DECODER
from lora_jax.sharding.layout import lay_out, sharded_shape
from lora_jax.training.step import TrainState, make_train_step

SIZES = {"vocab_size": 24, "intermediate_size": 32, "attention_bias": True, "mlp_bias": True}
SMALL = {"rank": 2, "target_rank": 1, "total_steps": 4, "t_init": 0, "t_final": 1}
SMALL |= {"frequencies": 20}
"""Of a variant's settings, those that it has."""
TARGETS = {"trainable_tokens": "embed|embedding"}  # the rows of tables are what it is for


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A function to train, by a method, on a batch."""

    forward: Any
    params: Any
    adapted: lj.Adapted
    batch: dict[str, Any]
    rules: Any = DECODER
    alone: "Problem | None" = None
    """The same for one device, whose trainables and frozen weights this begins with."""
    loss: Any = None
    """By default that of a language model."""

    @property
    def inputs(self):
        return self.params, self.batch["ids"]


def decoder(
    adapt,
    mesh=None,
    dtype=jnp.float64,
    sizes=SIZES,
    batch=(8, 8),
    name="llama",
    alone=None,
    **more,
):
    """A language model to be adapted by `adapt(forward)`."""
    options = {"mesh": mesh, "param_dtype": dtype, **more}
    forward, params = lj.from_nnx(random_decoder(name, options=options, **sizes))
    ids = np.asarray(random_ids(*batch, vocabulary=sizes["vocab_size"]))
    weight = np.ones(batch[0])
    weight[-1] = 0  # a row that only fills the batch
    return Problem(forward, params, adapt(forward), {"ids": ids, "weight": weight}, alone=alone)


def method(name, quantize=None, also=("head/kernel",), **settings):
    """Of a forward pass: that adapted by a variant of a small rank.

    A variant that adapts nothing trains what `also` names, too, and what is not stored in bits.
    """
    fields = {each.name for each in dataclasses.fields(variants.find(name))}
    small = {setting: value for setting, value in SMALL.items() if setting in fields}
    variant = variants.make(name, **small | settings)
    if not variant.adapts or name in TARGETS:
        quantize = None
    also = [] if variant.adapts else also
    given = variant, TARGETS.get(name, "all-linear"), also, quantize
    return lambda forward: lj.adapt(forward, *given)


def language_loss(outputs, batch):
    logs = jax.nn.log_softmax(outputs[:, :-1])
    return -jnp.take_along_axis(logs, batch["ids"][:, 1:, None], axis=-1)[..., 0].mean(axis=1)


def begin(problem, mesh=None):
    """Trainables a little off their start, the frozen weights, and the layout on a mesh."""
    trainable, frozen = _made(problem.alone or problem)
    if mesh is None:
        return trainable, frozen, None
    layout = lay_out(problem.adapted, mesh, problem.rules, *problem.inputs)
    where = layout.trainable, layout.frozen
    # From NumPy: each part of JAX's own arrays would be cut off by a program that is compiled.
    whole = jax.device_get((trainable, layout.gathering(frozen)))
    return *jax.device_put(whole, where), layout


@functools.lru_cache(maxsize=2)
def _made(problem):
    def init(key, params):
        return problem.adapted.init(key, params, problem.batch["ids"])

    trainable, frozen = jax.jit(init)(jax.random.key(0), problem.params)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape), trainable), frozen


def stepping(problem, mesh=None, accumulate=1):
    """The jitted step, and what to call it with."""
    trainable, frozen, layout = begin(problem, mesh)
    start, shardings, step = _step(problem, layout, trainable, frozen, accumulate)
    batch = problem.batch if layout is None else jax.device_put(problem.batch, layout.rows)
    state = jax.jit(start, out_shardings=shardings)(trainable, frozen)
    return step, (state, frozen, batch)


def program(problem, mesh):
    """What the compiler makes of the step; no array is made."""
    layout = lay_out(problem.adapted, mesh, problem.rules, *problem.inputs)
    trainable, frozen = layout.shapes(jax.random.key(0), *problem.inputs)
    start, shardings, step = _step(problem, layout, trainable, frozen)
    state = jax.tree.map(sharded_shape, jax.eval_shape(start, trainable, frozen), shardings)
    batch = {name: sharded_shape(array, layout.rows) for name, array in problem.batch.items()}
    return step.lower(state, frozen, batch).compile()


def _step(problem, layout, trainable, frozen, accumulate=1):
    """What makes a state of trainables and frozen weights, where its arrays lie, and the step."""
    adapted, tx = problem.adapted, optax.sgd(0.1)

    def start(trainable, frozen):
        return TrainState.create(adapted, tx, trainable, frozen, jax.random.key(2))

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["ids"], dropout_key=rng)

    shardings = None
    if layout is not None:
        shardings = layout.like(jax.eval_shape(start, trainable, frozen))
    loss = problem.loss or language_loss
    step = make_train_step(adapted, tx, predict, loss, accumulate, 10.0, shardings)
    return start, shardings, step


def assert_same_training(problem, mesh, compilations=None, **options):
    """Losses, gradients and weights of some steps on a mesh are those of one device."""
    got = steps(problem, mesh, compilations=compilations, **options)
    assert_close(got, steps_alone(problem.alone or problem))


@functools.lru_cache(maxsize=4)
def steps_alone(problem):
    return steps(problem)


def steps(problem, mesh=None, count=3, compilations=None, **options):
    """The loss, gradient's norm and trainables of so many steps; only the first compiles."""
    step, (state, frozen, batch) = stepping(problem, mesh, **options)
    found = []
    for number in range(count):
        if number == 1 and compilations is not None:
            with compilations() as counted:
                state, metrics = step(state, frozen, batch)
            assert not counted, "the second step compiles again"
        else:
            state, metrics = step(state, frozen, batch)
        found.append(jax.device_get((metrics, state.trainable)))
    return found


def assert_close(got, wanted, tolerance=1e-10):
    """Leaf by leaf, to a share of the largest number of each."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    pairs = jax.tree_util.tree_leaves_with_path(got)
    for (path, mine), theirs in zip(pairs, jax.tree.leaves(wanted), strict=True):
        scale = max(float(np.abs(theirs).max()), 1e-3)
        off = float(np.abs(mine - theirs).max())
        assert off <= tolerance * scale, f"{jax.tree_util.keystr(path)}: {off} of {scale}"


def own(params, ids):
    """What widens, what narrows, heads as axes of their own, and a square matrix at the end."""

    def layer(x, each):
        x = x + jnp.tanh(x @ each["up"]) @ each["down"]
        heads = jnp.tanh(jnp.einsum("btd,dhk->bthk", x, each["query"]))
        return x + jnp.einsum("bthk,hkd->btd", heads, each["output"]), None

    x = jax.lax.scan(layer, params["embed"][ids], params["layers"])[0]
    return jnp.tanh(x @ params["square"]) @ params["embed"].T


def own_problem(adapt, rules, heads=(4, 8), inner=256, width=64, tokens=6, words=256, alone=None):
    random = np.random.default_rng(0)
    shapes = {
        "up": (2, width, inner),
        "down": (2, inner, width),
        "query": (2, width, *heads),
        "output": (2, *heads, width),
    }
    layers = {n: 0.1 * random.standard_normal(shape) for n, shape in shapes.items()}
    square, embed = random.standard_normal((width, width)), random.standard_normal((words, width))
    params = {"embed": embed, "layers": layers, "square": 0.1 * square}
    params = jax.tree.map(jnp.asarray, params)
    batch = {"ids": random.integers(0, words, (8, tokens)).astype(np.int32), "weight": np.ones(8)}
    if rules is not None:
        rules = (*rules, ("square", P("fsdp", "tensor")))
    return Problem(own, params, adapt(own), batch, rules, alone)
