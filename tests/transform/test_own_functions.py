"""What users' functions do with keywords, constants, casts and leaves that are not arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.transform.adapt import merged_parts

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 6))
W = jax.random.normal(jax.random.key(2), (6, 6))


def moved(adapted, params, *args, **kwargs):
    """An adapter that changes the weights, from `init`."""
    trainable, frozen = adapted.init(KEY, params, *args, **kwargs)
    keys = jax.random.key(3)
    return jax.tree.map(lambda x: x + jax.random.normal(keys, x.shape), trainable), frozen


@pytest.mark.parametrize("name", ["dropout_key", "counts", "loss", "seen"])
def test_a_keyword_of_the_function_s_own_is_not_swallowed(name):
    names = {"jnp": jnp}
    exec(f"def forward(params, x, {name}=None): return x @ params['w']", names)
    adapted = lj.adapt(names["forward"], variants.make("lora", rank=2))
    trainable, frozen = moved(adapted, {"w": W}, X, None)  # by position it reaches the function
    merged = names["forward"](adapted.merge(trainable, frozen), X)
    np.testing.assert_allclose(adapted.apply(trainable, frozen, X, None), merged, rtol=1e-5)
    with pytest.raises(ValueError, match=f"'{name}' is a parameter of the adapted function, too"):
        if name == "dropout_key":
            adapted.apply(trainable, frozen, X, dropout_key=KEY)
        else:
            adapted.init(KEY, {"w": W}, X, **{name: {}})


def test_constants_come_out_as_arrays():
    def forward(params, x):
        return x @ params["w"], jnp.float32(1), 2.0, np.arange(3)

    adapted = lj.adapt(forward, variants.make("lora"))
    trainable, frozen = moved(adapted, {"w": W}, X)
    found = adapted.apply(trainable, frozen, X)
    plain = jax.jit(forward)({"w": W}, X)
    assert all(isinstance(each, jax.Array) for each in found)
    assert [each.aval for each in found] == [each.aval for each in plain]
    assert [float(each) for each in found[1:3]] == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [jnp.float8_e5m2, jnp.float8_e4m3fn])
def test_a_cast_to_float8_rounds_the_changed_weight(dtype):
    def forward(params, x):
        return x @ params["w"].astype(dtype).astype(jnp.float32)

    adapted = lj.adapt(forward, variants.make("lora", rank=2), targets=["w"])
    trainable, frozen = moved(adapted, {"w": W}, X)
    wanted = forward(adapted.merge(trainable, frozen), X)
    np.testing.assert_allclose(adapted.apply(trainable, frozen, X), wanted, rtol=1e-6, atol=1e-6)


def test_a_number_of_another_type_is_another_program():
    def forward(params, x):
        return (x @ params["w"]).sum(), jnp.full(3, params["c"])

    adapted = lj.adapt(forward, variants.make("lora"))
    apply = jax.jit(adapted.apply)
    dtypes = [apply(*adapted.init(KEY, {"w": W, "c": c}, X), X)[1].dtype for c in (1, 1.0)]
    assert dtypes == [jnp.int32, jnp.float32]


def test_a_keyword_that_a_partial_has_bound_is_free():
    adapted = lj.adapt(
        functools.partial(lambda p, x, dropout_key: x @ p["w"], dropout_key=None),
        variants.make("lora", rank=2, dropout=0.5),
    )
    trainable, frozen = moved(adapted, {"w": W}, X)
    dropped = adapted.apply(trainable, frozen, X, dropout_key=KEY)
    assert not np.allclose(dropped, adapted.apply(trainable, frozen, X))


def test_a_row_of_a_loop_ends_though_its_condition_drops_activations():
    """The condition's product is dropped by the same key in each iteration, and asked once."""

    def forward(params, x):
        def row(x):
            return jax.lax.while_loop(
                lambda s: s.sum() + 1e-3 * (s @ params["w"]).sum() < 9.0, lambda s: s + 1.0, x
            )

        return jax.vmap(row)(x)

    adapted = lj.adapt(forward, variants.make("lora", rank=2, dropout=0.5))
    trainable, frozen = moved(adapted, {"w": W}, X)
    ends = np.asarray(adapted.apply(trainable, frozen, X, dropout_key=KEY)).sum(1)
    assert (ends > 8).all() and (ends < 17).all()


@pytest.mark.parametrize("name", ["apply", "merge", "disable", "save"])
def test_the_order_of_trainable_and_frozen_is_said(name, tmp_path):
    adapted = lj.adapt(lambda p, x: x @ p["w"], variants.make("lora", rank=2))
    trainable, frozen = adapted.init(KEY, {"w": W}, X)
    calls = {
        "apply": lambda *both: adapted.apply(*both, X),
        "merge": adapted.merge,
        "disable": adapted.disable,
        "save": lambda *both: lj.save_adapter(tmp_path / "adapter", *both),
    }
    with pytest.raises(ValueError, match=r"expected \(trainable, frozen\), .*got \(Frozen, dict\)"):
        calls[name](frozen, trainable)
    calls[name](trainable, frozen)


@pytest.mark.parametrize("name", ["apply", "jitted", "merge", "merged_parts", "disable", "save"])
def test_parts_of_two_inits_are_told_apart(name, tmp_path):
    def made(targets):
        adapted = lj.adapt(lambda p, x: x @ p["w"] @ p["v"], variants.make("lora", rank=2), targets)
        return adapted, *adapted.init(KEY, {"w": W, "v": W.T}, X)

    (adapted, one, frozen_one), (_, both, frozen_both) = made("w"), made(["w", "v"])
    call = {
        "apply": lambda *both: adapted.apply(*both, X),
        "jitted": lambda *both: jax.jit(adapted.apply)(*both, X),
        "merge": adapted.merge,
        "merged_parts": merged_parts,
        "disable": adapted.disable,
        "save": lambda *both: lj.save_adapter(tmp_path / "adapter", *both),
    }[name]
    with pytest.raises(ValueError, match=r"^'v' has an adapter in trainable and none in frozen: b"):
        call(both, frozen_one)
    with pytest.raises(ValueError, match=r"^'v' has an adapter in frozen and none in trainable: b"):
        call(one, frozen_both)
    with pytest.raises(ValueError, match=r"^trainable has no 'adapters': give all of what"):
        call(one["adapters"], frozen_one)
    with pytest.raises(ValueError, match=r"^trainable has no 'params'"):
        call({"adapters": one["adapters"]}, frozen_one)
    call(one, frozen_one)


def test_an_empty_weight_is_named():
    adapted = lj.adapt(lambda p, x: x @ p["w"] @ p["none"], variants.make("lora", rank=2))
    with pytest.raises(ValueError, match=r"'none' of shape \(6, 0\) is empty: leave it out"):
        adapted.init(KEY, {"w": W, "none": jnp.ones((6, 0))}, X)


def test_numpy_s_float64_is_what_jax_makes_of_it():
    adapted = lj.adapt(lambda p, x: x @ p["w"], variants.make("lora", rank=2))
    params = {"w": np.asarray(W, np.float64)}
    eager, jitted = (init(KEY, params, X)[1].spec for init in (adapted.init, jax.jit(adapted.init)))
    assert eager == jitted
