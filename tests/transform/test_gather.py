"""What is gathered of weights in use, against dense gradients and covariances of the same."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import lora_jax as lj
from lora_jax.base import Need
from lora_jax.sharding.layout import lay_out
from variants.lora import LoRA

KEY = jax.random.key(3)
SHAPES = {
    "layers": (3, 6, 6),
    "twice": (6, 6),
    "heads": (6, 2, 3),
    "experts": (2, 3, 4),
    "turned": (5, 8),
}


@dataclasses.dataclass(frozen=True)
class Seeing(LoRA):
    """LoRA that asks to see something."""

    of: Any = "gradient"

    @property
    def needs(self):
        return Need(self.of, 3)


def net(params, x):
    """A scan over layers, recomputing, a weight used twice, heads, experts, and a transpose."""
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]
    x = jax.checkpoint(lambda x: jnp.tanh(x @ params["twice"]))(x) @ params["twice"]
    x = jnp.einsum("ti,iho->hto", x, params["heads"])
    x = jnp.tanh(jax.vmap(jnp.matmul)(x, params["experts"]))
    return x.swapaxes(0, 1).reshape(-1, 8) @ params["turned"].T


def loss(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


@pytest.fixture(scope="module")
def problem():
    jax.config.update("jax_enable_x64", True)
    random = np.random.RandomState(0)
    params = {name: jnp.asarray(random.randn(*shape) / 2) for name, shape in SHAPES.items()}
    batches = [{"x": random.randn(10, 6) + 2, "y": random.randn(10, 5)} for _ in range(2)]
    yield params, batches
    jax.config.update("jax_enable_x64", False)


def gathered(problem, of, targets: Any = tuple(SHAPES), **options) -> tuple[lj.Adapted, Any]:
    params, batches = problem
    adapted = lj.adapt(net, Seeing(rank=2, of=of), targets, **options)
    return adapted, adapted.gather(KEY, params, batches[0]["x"], batches=batches, loss=loss)


def matrices(name, array):
    """A weight, or its gradient, as a stack of (in, out) matrices."""
    array = np.asarray(array)
    if name == "heads":
        return array.swapaxes(0, 1)  # each head has an expert of its own
    return array.T[None] if name == "turned" else array.reshape(-1, *array.shape[-2:])


@pytest.mark.parametrize("storage", [None, lj.NF4()])
def test_gradients_are_those_of_dense_weights(storage, problem):
    params, batches = problem
    stored = {"(twice|layers)": storage} if storage else {}
    _, seen = gathered(problem, "gradient", quantize=stored)
    if stored:
        plain = lj.adapt(net, LoRA(rank=2), "turned", quantize=stored)
        params = plain.disable(*plain.init(KEY, params, batches[0]["x"]))

    @jax.jit
    @jax.grad
    def dense(params):
        return sum(loss(functools.partial(net, params), batch) for batch in batches) / 2

    for name, gradient in dense(params).items():
        u, s, v = np.linalg.svd(matrices(name, gradient), full_matrices=False)
        best = (u[..., :3] * s[:, None, :3]) @ v[:, :3]
        left, values, right = (
            np.reshape(x, (len(s), *x.shape[seen[name].values.ndim - 1 :])) for x in seen[name]
        )
        np.testing.assert_allclose(values, s[:, :3], rtol=0, atol=1e-12 * s.max())
        got = left.swapaxes(1, 2) @ (values[..., None] * right)
        np.testing.assert_allclose(got, best, rtol=0, atol=1e-9 * np.abs(best).max())


def test_a_narrow_basis_finds_nearly_the_best_directions(problem):
    """Where there are more directions than the sketch follows, it loses little."""
    random = np.random.RandomState(1)
    u, v = (np.linalg.qr(random.randn(n, 40))[0] for n in (50, 40))
    gradient = (u * 0.9 ** np.arange(40)) @ v.T
    adapted = lj.adapt(lambda p, x: x @ p["w"], Seeing(rank=2))
    given = {
        "batches": [jnp.asarray(gradient)],
        "loss": lambda model, g: (model(np.eye(50)) * g).sum(),
    }
    seen: Any = adapted.gather(KEY, {"w": jnp.zeros((50, 40))}, np.eye(50), **given)["w"]
    rest = gradient - seen.left.T @ (seen.values[:, None] * seen.right)
    best = np.linalg.norm(0.9 ** np.arange(3, 40))
    assert best <= np.linalg.norm(rest) < 1.02 * best


def test_it_is_the_same_on_a_mesh(problem):
    params, batches = problem
    adapted = lj.adapt(net, Seeing(rank=2, of="inputs"), ["layers", "twice"])
    given: Any = {"loss": loss, "counts": lambda batch: jnp.abs(batch["y"][:, 0])}
    wanted = adapted.gather(KEY, params, batches[0]["x"], batches=batches, **given)
    mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"))
    rules = ((".*", PartitionSpec()),)
    layout = lay_out(adapted, mesh, rules, params, batches[0]["x"], seen=wanted)
    batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec("data")))
    got = adapted.gather(KEY, layout.place(params), batches[0]["x"], batches=batches, **given)
    check.assert_close(jax.device_get(got), jax.device_get(wanted), 1e-9)


def test_what_cannot_be_seen_is_named(problem):
    params, batches = problem
    adapted = lj.adapt(net, Seeing(rank=2))
    given = KEY, params, batches[0]["x"]
    with pytest.raises(ValueError, match=r"'experts': .* gradient: give batches and a loss"):
        adapted.init(*given)
    with pytest.raises(ValueError, match=r"'experts': .* gradient: give batches and a loss"):
        adapted.init(*given, batches=[(batches[0]["x"],)])
    with pytest.raises(ValueError, match=r"'experts': its gradient .* is zero"):
        adapted.init(*given, batches=batches, loss=lambda model, batch: 0.0 * loss(model, batch))
    merged = lj.adapt(lambda p, x: x @ jnp.abs(p["twice"]), Seeing(rank=2, of="inputs"), "twice")
    with pytest.raises(ValueError, match=r"'twice': its inputs cannot be seen .* by abs"):
        merged.init(*given, batches=[(batches[0]["x"],)])
