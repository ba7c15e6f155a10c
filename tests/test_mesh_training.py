"""Training on meshes of devices is training on one: losses and gradients, method by method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from make_fixtures import bert, deberta
from mesh_runs import Problem, assert_close, assert_same_training, decoder, method, steps

import lora_jax as lj
import variants
from lora_jax.models.families import family_of
from lora_jax.models.sharding_rules import ENCODER

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64")

BITS = {"(query|key|value|output|up|gate|down)/kernel": lj.NF4(block=4)}
IN_FULL = ("bitfit", "full", "head_only", "trainable_tokens")  # nothing of theirs is quantised
DENSE = ("dora", "ia3", "vera", "adalora", *IN_FULL)
STORED = ("dora",)
SLOW = pytest.mark.slow


def cases():
    """Every variant on dense and on quantised weights; those that others stand for are slow."""
    for name in variants.names():
        for storage in (None,) if name in IN_FULL else (None, BITS):
            usual = name in (DENSE if storage is None else STORED)
            marks = () if usual else SLOW
            kind = "dense" if storage is None else "nf4"
            yield pytest.param(name, storage, id=f"{name}-{kind}", marks=marks)


@pytest.mark.parametrize("name, storage", list(cases()))
def test_every_variant_trains_as_on_one_device(name, storage, compilations):
    adapt = method(name, storage)
    assert_same_training(adapt, lj.make_mesh(2, 2, 2), compilations)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 8, 1),
        (1, 1, 8),
        pytest.param((8, 1, 1), marks=SLOW),
        pytest.param((1, 2, 4), marks=SLOW),
        pytest.param((2, 2, 2), marks=SLOW),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:left whole")  # a bias of 24 numbers, a table of 24 rows
def test_every_mesh_trains_as_one_device(sizes):
    assert_same_training(method("lora", BITS), lj.make_mesh(*sizes))


def test_equal_keys_drop_the_same_numbers():
    assert_same_training(method("lora", dropout=0.4), lj.make_mesh(2, 2, 2))


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    """Rows of all devices in every part, one of them a row that only fills the batch."""
    mesh, adapt = lj.make_mesh(2, 2, 2), method("lora")
    alone = decoder(adapt)
    spread = decoder(adapt, mesh, alone=alone)
    assert_close(steps(spread, mesh, 2, accumulate=2), steps(alone, count=2))


# ---- other models --------------------------------------------------------------------------------


@pytest.mark.slow
def test_recomputed_layers():
    assert_same_training(method("dora", BITS), lj.make_mesh(1, 4, 2), remat=True)


@pytest.mark.slow
def test_gpt2():
    sizes = {"vocab_size": 24}
    assert_same_training(method("dora"), lj.make_mesh(2, 2, 2), sizes=sizes, name="gpt2")


@pytest.mark.parametrize(
    "content, name",
    [
        pytest.param(bert.CASES["bert"][0], "ia3", id="bert", marks=SLOW),
        pytest.param(bert.CASES["roberta"][0], "vera", id="roberta", marks=SLOW),
        pytest.param(deberta.CASES["v2"][0], "dora", id="deberta"),
    ],
)
def test_encoders(content, name):
    """Their activations are left to the compiler."""
    family = family_of(content)
    config = family.config.from_json(content)
    model = family.classifier(config, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    forward, params = lj.from_nnx(model)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.2 * random.standard_normal(x.shape), params)
    ids = random.integers(2, 50, (8, 8)).astype(np.int32)

    def call(params, ids):
        return forward(params, ids, jnp.ones_like(ids))

    batch = {"ids": ids, "weight": np.ones(8)}
    problem = Problem(call, params, method(name)(call), batch, ENCODER)
    loss = {"loss": lambda outputs, batch: jnp.square(outputs).sum(axis=1)}
    mesh = lj.make_mesh(2, 2, 2)
    assert_close(steps(problem, mesh, 2, **loss), steps(problem, count=2, **loss))


# ---- functions of a user's own -------------------------------------------------------------------

TABLE = (
    ("embed", P("tensor", "fsdp")),
    ("(up|query)", P(None, "fsdp", "tensor")),
    ("(down|output)", P(None, "tensor", "fsdp")),
)


def own(params, ids):
    """What widens, what narrows, heads as axes of their own, and a square matrix at the end."""

    def layer(x, each):
        x = x + jnp.tanh(x @ each["up"]) @ each["down"]
        heads = jnp.tanh(jnp.einsum("btd,dhk->bthk", x, each["query"]))
        return x + jnp.einsum("bthk,hkd->btd", heads, each["output"]), None

    x = jax.lax.scan(layer, params["embed"][ids], params["layers"])[0]
    return jnp.tanh(x @ params["square"]) @ params["embed"].T


def own_problem(adapt, rules, heads=(4, 8), inner=256, width=64, tokens=6, words=256):
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
    return Problem(own, params, adapt(own), batch, rules)


@pytest.mark.parametrize("name", ["dora", "ia3", "vera"])
@pytest.mark.parametrize("rules", [None, TABLE], ids=["automatic", "table"])
def test_a_function_of_a_users_own(name, rules):
    mesh = lj.make_mesh(2, 2, 2)
    problem = own_problem(method(name), rules)
    assert_close(steps(problem, mesh, 2), steps(problem, count=2))


@pytest.mark.parametrize("heads, inner", [((8, 16), 128), ((2, 32), 66), ((3, 40), 512)])
def test_a_function_of_other_sizes_without_a_table(heads, inner):
    """Square ones, and axes that no device divides."""
    problem = own_problem(method("ia3"), None, heads, inner)
    for sizes in ((2, 2, 2), (1, 4, 2)):
        assert_close(steps(problem, lj.make_mesh(*sizes), 1), steps(problem, count=1))


@pytest.mark.xfail(
    strict=True,
    reason="XLA sums partial gradients wrongly here, in jax 0.10.2 and 0.12.0.1: `automatic` and "
    "the families' tables cut what widens along its outputs, what narrows along its inputs",
)
def test_gradients_of_vectors_in_scans_whose_matrices_are_all_cut_one_way():
    """Plain JAX, nothing of this project: once it passes, the note in `automatic` can go."""
    mesh = lj.make_mesh(2, 2, 2)
    random = np.random.default_rng(0)
    matrices = {
        "up": random.standard_normal((2, 16, 32)),
        "down": random.standard_normal((2, 32, 16)),
    }
    matrices = jax.tree.map(lambda x: x / 4, matrices)
    vectors = {"up": np.ones((2, 32)), "down": np.ones((2, 16))}
    x = random.standard_normal((8, 16))

    @jax.jit
    @jax.grad
    def gradient(vectors, matrices, x):
        def layer(x, each):
            vector, matrix = each
            y = jnp.tanh((x @ matrix["up"]) * vector["up"][None])
            return x + (y @ matrix["down"]) * vector["down"][None], None

        return jnp.square(jax.lax.scan(layer, x, (vectors, matrices))[0]).mean()

    def put(tree, *spec):
        return jax.device_put(tree, NamedSharding(mesh, P(*spec)))

    cut = put(vectors), put(matrices, None, "fsdp", "tensor"), put(x, ("data", "fsdp"))
    assert_close(jax.device_get(gradient(*cut)), jax.device_get(gradient(vectors, matrices, x)))
