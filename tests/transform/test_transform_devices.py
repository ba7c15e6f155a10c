"""`apply` on eight (simulated) devices: the numbers of one device, wherever arrays are laid out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from zoo.case import seeded
from zoo.decoder import decoder

import lora_jax as lj
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")

LAYOUTS = {
    "in axes": {"layers/up": P(None, "x"), "layers/out": P(None, "y"), "head": P("x")},
    "out axes": {"layers/up": P(None, None, "x"), "layers/qkv": P(None, None, None, "y")},
    "table and head": {"table": P(None, "x"), "head": P(None, "y")},
    "rows of the table": {"table": P(("x", "y")), "layers/down": P(None, None, "x")},
    "both": {"layers/up": P(None, "y", "x"), "layers/down": P(None, "y", "x"), "head": P("y", "x")},
}  # fmt: skip


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def gradient(adapted, theta, frozen, *args):
    """Outputs and gradients, as a training step has them."""
    return check.derivative(lambda t: adapted.apply(t, frozen, *args), theta)


@pytest.fixture(scope="module")
def alone():
    with jax.enable_x64(True):
        case = seeded("devices", decoder)()
        ids = jnp.tile(case.args[0], (4, 1))
        adapted = lj.adapt(case.forward, LoRA(rank=2, alpha=2.0), case.targets)
        start, frozen = adapted.init(jax.random.key(0), case.params, ids)
        theta = check.random_like(start, seed=1)
        found = jax.jit(functools.partial(gradient, adapted))(theta, frozen, ids)
        return adapted, theta, frozen, ids, (found, jax.jit(adapted.merge)(theta, frozen))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_parameters_and_batch(alone, layout):
    adapted, theta, frozen, ids, expected = alone
    devices = mesh(AxisType.Auto)

    def lay(path, leaf):
        # From NumPy: of JAX's own arrays, each part is cut by a program that is compiled.
        where = NamedSharding(devices, LAYOUTS[layout].get(path, P()))
        return jax.device_put(np.asarray(leaf), where)

    base = {path: lay(path, leaf) for path, leaf in frozen.base.items()}
    sharded = lj.Frozen(base, frozen.constants, frozen.spec)
    batch = jax.device_put(np.asarray(ids), NamedSharding(devices, P("y")))

    @jax.jit
    def run(theta, frozen, ids):
        return gradient(adapted, theta, frozen, ids), adapted.merge(theta, frozen)

    check.assert_close(run(theta, sharded, batch), expected)
    if layout == "both":  # operation by operation, too
        check.assert_close(adapted.apply(theta, sharded, batch), expected[0][0])


def stack(p, x):
    def layer(x, w):
        return jnp.tanh(x @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x, p)[0]


def stack_of(count, kind, specs):
    params = check.random_like(
        {"up": jnp.zeros((count, 8, 16)), "down": jnp.zeros((count, 16, 8))}, seed=0
    )
    x = check.random_like(jnp.zeros((8, 8)), seed=1)
    devices = mesh(kind)

    def lay(name, leaf):
        return jax.device_put(np.asarray(leaf), NamedSharding(devices, specs[name]))

    return params, x, {n: lay(n, w) for n, w in params.items()}, lay("x", x), devices


def test_stacked_axis_sharded():
    specs = {"up": P("x"), "down": P("x", None, "y"), "x": P("y")}
    params, x, laid, batch, _ = stack_of(4, AxisType.Auto, specs)
    adapted = lj.adapt(stack, LoRA(rank=2), ".*")
    start, frozen = adapted.init(jax.random.key(0), params, x)
    there, elsewhere = adapted.init(jax.random.key(0), laid, batch)
    check.assert_close(there, start, tolerance=0)
    theta = check.random_like(start, seed=2)
    run = jax.jit(functools.partial(gradient, adapted))
    check.assert_close(run(theta, elsewhere, batch), run(theta, frozen, x))


EXPLICIT = {
    "batch": {"up": P(), "down": P(), "x": P("x")},
    "out, then in": {"up": P(None, None, "y"), "down": P(), "x": P("x")},
}


@pytest.mark.parametrize("layout", EXPLICIT)
def test_explicit_shardings(layout):
    """Shardings as a part of types: the trace must see those of the weights."""

    def forward(p, x):
        def layer(x, w):
            y = jax.sharding.reshard(jnp.tanh(x @ w["up"]), P("x"))
            return y @ w["down"], None

        return jax.lax.scan(layer, x, p)[0]

    specs = EXPLICIT[layout]
    _, _, laid, batch, devices = stack_of(2, AxisType.Explicit, specs)
    adapted = lj.adapt(forward, LoRA(rank=2), ".*")
    with jax.set_mesh(devices):
        start, frozen = adapted.init(jax.random.key(0), laid, batch)
        theta = check.random_like(start, seed=2)
        outputs, mine = jax.jit(functools.partial(gradient, adapted))(theta, frozen, batch)
        assert jax.typeof(outputs) == jax.typeof(jax.jit(forward)(laid, batch))

        def through_merge(t):
            return forward(adapted.merge(t, frozen), batch)

        check.assert_close(
            (outputs, mine), jax.jit(lambda t: check.derivative(through_merge, t))(theta)
        )


STARTS = {
    "pissa": P("y"),
    "pissa_niter_1": P(None, "y"),
    "milora": P("y"),
    "olora": P(None, "y"),
}


def test_starts_from_weights_with_explicit_shardings():
    """A factorisation takes no matrix whose type says that it is divided."""
    params = check.random_like({name: jnp.zeros((8, 6)) for name in STARTS}, seed=0)
    devices = mesh(AxisType.Explicit)
    where = {name: NamedSharding(devices, spec) for name, spec in STARTS.items()}
    methods = {name: LoRA(rank=2, initialization=name) for name in STARTS}
    adapted = lj.adapt(lambda p: sum(jnp.ones(8) @ w for w in p.values()), targets=methods)

    @jax.jit
    def start(params):
        return adapted.init(jax.random.key(0), params)[0]

    with jax.set_mesh(devices):
        got = start(jax.device_put(params, where))
    check.assert_close(got, start(params), tolerance=1e-12)


def by_hand(devices, in_specs, out_specs, check_vma=True):
    """`shard_map` around what a device does: its own rows, the whole of what is replicated."""
    return functools.partial(
        jax.shard_map, mesh=devices, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma
    )


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(None, id="dense"),
        pytest.param(lj.NF4(), id="quantised", marks=pytest.mark.slow),
    ],
)
def test_a_step_of_data_parallelism_by_hand_merges_nothing(alone, storage):
    """The gradient inside `shard_map`, which JAX sums; each weight is varied before its product."""
    ids = alone[3]
    case = seeded("devices", decoder)()
    merges: set[str] = set()
    quantize = storage and {"up|down|qkv": storage}
    adapted = lj.adapt(
        case.forward, check.Named(rank=2, alpha=2.0, merges=merges), case.targets, quantize=quantize
    )
    start, frozen = adapted.init(jax.random.key(0), case.params, ids)
    theta = check.random_like(start, seed=1)

    def loss(theta, frozen, ids):
        outputs = adapted.apply(theta, frozen, ids, dropout_key=jax.random.key(1))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

    devices = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @jax.jit
    @by_hand(devices, (P(), P(), P("data")), P())
    def step(theta, frozen, ids):
        def total(theta):
            return jax.lax.psum(loss(theta, frozen, ids), "data")

        return jax.value_and_grad(total)(theta)

    actual = step(theta, frozen, ids)
    assert merges == set()
    check.assert_close(actual, jax.jit(jax.value_and_grad(loss))(theta, frozen, ids))


@pytest.mark.parametrize("check_vma", [True, False])
def test_one_adapter_for_each_device(alone, check_vma):
    adapted, theta, frozen, ids, _ = alone
    devices = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    many = check.random_like(jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), theta), seed=3)

    @jax.jit
    @by_hand(devices, (P("data"), P(), P("data")), P("data"), check_vma)
    def apply(theta, frozen, ids):
        theta = jax.tree.map(lambda leaf: leaf[0], theta)
        return adapted.apply(theta, frozen, ids)

    each = ids.reshape(8, -1, *ids.shape[1:])
    expected = jax.vmap(lambda theta, ids: adapted.apply(theta, frozen, ids))(many, each)
    actual = apply(many, frozen, ids)
    check.assert_close(actual, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), expected))
