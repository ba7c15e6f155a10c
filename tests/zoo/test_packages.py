"""Strangers' models, as they come from their packages: `make zoo` installs these."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.compiled.by_numpy import ByNumpy
from zoo import check, routes
from zoo.family import families

if find_spec("eqx_zoo") is None:
    pytest.skip(
        "these packages have an environment of their own: make zoo", allow_module_level=True
    )

FAMILIES = families()

pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A family, made once for its tests, with JAX's own promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield FAMILIES[request.param]()


def test_what_all_linear_selects_and_how_weights_are_used(family, request):
    name = request.node.callspec.params["family"]
    assert routes.routes(name, family) == routes.read().get(name)


def test_apply_is_the_merged_model(family):
    """With their gradients, every float a float64: models compute some steps in float32."""
    adapted, start, frozen = _adapted(family)
    theta = check.random_like(start, seed=1)

    def through_apply():
        return check.derivative(lambda at: adapted.apply(at, frozen, *family.inputs), theta)

    def through_merge():
        def forward(at):
            return family.forward(adapted.merge(at, frozen), *family.inputs)

        return check.derivative(forward, theta)

    closed = jax.make_jaxpr(lambda: (through_apply(), through_merge()))()
    outputs = ByNumpy(wide=True)(closed.jaxpr, closed.consts, [])
    half = len(outputs) // 2
    check.assert_close(outputs[:half], outputs[half:])


def test_one_program_trains_it(family, compilations):
    adapted, theta, frozen = _adapted(family)
    optimizer = adapted.optimizer(optax.adam(3e-3), frozen)

    @jax.value_and_grad
    def loss_of(theta):
        """How far all that the model gives is from numbers that are drawn."""
        outputs = check.arrays(adapted.apply(theta, frozen, *family.inputs))
        return sum(jnp.square(each - check.random_like(each, 3)).mean() for each in outputs)

    @jax.jit
    def step(theta, state):
        loss, gradients = loss_of(theta)
        updates, state = optimizer.update(gradients, state, theta)
        return optax.apply_updates(theta, updates), state, loss

    state, losses = jax.jit(optimizer.init)(theta), []
    with compilations() as counted:
        for _ in range(20):
            theta, state, loss = step(theta, state)
            losses.append(loss)
    assert len(counted) == 1
    assert float(losses[-1]) < float(losses[0])


def test_the_file_has_no_other_family():
    assert routes.read().keys() == FAMILIES.keys()


def _adapted(family):
    adapted = lj.adapt(family.forward, variants.make("lora", rank=2), family.targets)
    return adapted, *adapted.init(jax.random.key(0), family.params, *family.inputs)
