"""Tables that are looked up in under `vmap`: an ensemble's, of which each member has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"table": RNG.normal(size=(5, 11, 4)), "head": RNG.normal(size=(5, 4, 3))}
IDS = RNG.integers(0, 11, (5, 2, 3))
IDS[:, 0, 0] = -1, 40, -12, 11, 0  # some are counted from the end, or out of range

LOOKUPS = {
    "index": lambda table, ids: table[ids],
    "take": lambda table, ids: jnp.take(table, ids, axis=0),
    "fill": lambda table, ids: table.at[ids].get(mode="fill", fill_value=0.5),
    "columns": lambda table, ids: jnp.moveaxis(jnp.take(table.T, ids, axis=1, mode="clip"), 0, -1),
    "one": lambda table, ids: table[ids.ravel()[1]],
}


def moved(trainable):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), trainable)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("name", "own"),
    [(name, own) for name in LOOKUPS for own in (True, False) if own or name != "one"],
)
def test_each_member_has_factors_of_its_own(name, own, axis):
    """Members come first or in the middle; all look up the same rows, or each its own.

    A single row of all tables is left out: it may be a layer of a stack.
    """

    def member(p, ids):
        return jnp.tanh(LOOKUPS[name](p["table"], ids)) @ p["head"]

    params = {**PARAMS, "table": np.moveaxis(PARAMS["table"], 0, axis)}
    ids = IDS if own else IDS[0]
    many = jax.vmap(member, ({"table": axis, "head": 0}, 0 if own else None))
    use = lj.discover(many, params, ids)["table"]
    assert (use.stack, use.inputs, use.outputs) == ((axis,), (1 - axis,), (2,))
    assert [each.merges for each in use.uses] == [None]

    adapted = lj.adapt(many, variants.make("lora", rank=2, alpha=3.0), ["table"])
    trainable, frozen = adapted.init(KEY, params, ids)
    trainable = moved(trainable)
    a, b = (trainable["adapters"]["table"][factor] for factor in "ab")
    tables = PARAMS["table"] + 1.5 * np.einsum("mri,mro->mio", a, b)
    for index, y in enumerate(adapted.apply(trainable, frozen, ids)):
        own_tree = {"table": jnp.asarray(tables[index]), "head": PARAMS["head"][index]}
        truth = member(own_tree, ids[index] if own else ids)
        np.testing.assert_allclose(y, truth, rtol=1e-12)


@pytest.mark.parametrize("method", ["dora", "loha"])
def test_tied_tables_of_members(method):
    """The gradients by a table that is also the head are those through the merged tables."""

    def member(p, ids):
        return jnp.tanh(p["table"][ids]) @ p["table"].T

    many = jax.vmap(member)
    adapted, ids = lj.adapt(many, variants.make(method, rank=2), ["table"]), IDS.clip(0, 10)
    trainable, frozen = adapted.init(KEY, {"table": PARAMS["table"]}, ids)
    trainable = moved(trainable)
    apply = jax.grad(lambda t: jnp.sum(jnp.sin(adapted.apply(t, frozen, ids))))
    merge = jax.grad(lambda t: jnp.sum(jnp.sin(many(adapted.merge(t, frozen), ids))))
    assert trainable["adapters"]["table"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
        apply(trainable),
        merge(trainable),
    )


def test_indices_that_a_member_chooses_show_its_table():
    """The tokens of each member come from its own weights, and the same inputs go to all."""

    def member(p, x):
        return p["table"][jnp.argmax(x @ p["codes"], axis=-1)] @ p["head"]

    params = {**PARAMS, "codes": RNG.normal(size=(5, 6, 11))}
    uses = lj.discover(jax.vmap(member, (0, None)), params, RNG.normal(size=(2, 6)))
    assert {path: use.stack for path, use in uses.items()} == dict.fromkeys(params, (0,))
