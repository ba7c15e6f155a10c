"""Comparisons with PEFT beyond `peft_net.assert_agrees`: starts, LoRA+'s rates, dropout, IA3."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from make_fixtures.peft_lora import RATE, STEPS
from peft_net import (
    adapt,
    assert_trees_close,
    begin,
    forward,
    group,
    squared_error,
    stepper,
    to_factors,
    variant_of,
)

from lora_jax.optim import scale_updates


def assert_starts_alike(arrays, config):
    """Where a start has nothing random: all of it, or for PiSSA and OLoRA all but signs."""
    base = {name: jnp.asarray(value) for name, value in group(arrays, "base0").items()}
    fresh, frozen = jax.jit(adapt(config).init)(jax.random.key(0), base, jnp.asarray(arrays["ids"]))
    compared = 0
    for path, theirs in to_factors(group(arrays, "start")).items():
        ours, constants = fresh["adapters"][path], frozen.constants[path]
        names = [n for n in ("m", "l", "d", "e") if n in ours]
        names += [n for n in ("a", "b") if n in ours and not theirs[n].any()]
        for name in names if "embed" not in path else set(names) & {"m", "l"}:
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-6, rtol=0)
            compared += 1
        if "a0" in constants:
            for name in ("a", "b"):
                both = np.abs(ours[name]), np.abs(theirs[name])
                np.testing.assert_allclose(*both, atol=1e-4, rtol=0)
            products = [each["a"].T @ each["b"] for each in (ours, theirs)]
            np.testing.assert_allclose(*products, atol=1e-5, rtol=0)
            compared += 1
    assert compared


def fast_pissa_errors(arrays, config):
    """`(best, ours, theirs)` by matrix: how far the start's product is from W, Frobenius norm."""
    base = {name: jnp.asarray(value) for name, value in group(arrays, "base0").items()}
    fresh, _ = jax.jit(adapt(config).init)(jax.random.key(0), base, jnp.asarray(arrays["ids"]))
    errors = []
    for path, theirs in to_factors(group(arrays, "start")).items():
        variant, w = variant_of(config, path.removesuffix(".weight")), base[path].T
        values = jnp.linalg.svd(w, compute_uv=False)
        starts = [s["a"].T @ s["b"] for s in (fresh["adapters"][path], theirs)]
        rest = [float(jnp.linalg.norm(w - variant.scaling() * start)) for start in starts]
        errors.append((float(jnp.linalg.norm(values[variant.rank :])), *rest))
    return errors


def assert_disabling_differs(arrays, config):
    """The difference: PEFT with its adapters off computes with the residual that it has left.

    Here what is left is the base, bit by bit.
    """
    ids = jnp.asarray(arrays["ids"])
    base = {name: jnp.asarray(value) for name, value in group(arrays, "base0").items()}
    left = {name: jnp.asarray(value) for name, value in group(arrays, "residual").items()}
    np.testing.assert_allclose(forward(base | left, ids), arrays["y_base"], atol=1e-12, rtol=0)
    assert np.abs(forward(base, ids) - arrays["y_base"]).max() > 1e-3

    adapted = adapt(config)
    fresh, frozen = jax.jit(adapted.init)(jax.random.key(0), base, ids)
    np.testing.assert_allclose(adapted.apply(fresh, frozen, ids), forward(base, ids), atol=1e-12)
    trainable = {**fresh, "adapters": to_factors(group(arrays, "trained"))}
    jax.tree.map(np.testing.assert_array_equal, adapted.disable(trainable, frozen), base)


# -- LoRA+ ---------------------------------------------------------------------------------------


def descend(gradient, trainable, tx):
    """STEPS steps of an optimiser."""

    @jax.jit
    def move(gradient, state, trainable):
        updates, state = tx.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state

    state = tx.init(trainable)
    for _ in range(STEPS):
        trainable, state = move(gradient(trainable), state, trainable)
    return trainable


def lora_plus(arrays, config, rates=None):
    """How far our training is from PEFT's, and what has moved least, by path and name.

    Args:
      rates: {path: {name: ratio}} in the place of those that the variant sets.
    """
    adapted, trainable, frozen, _ = begin(arrays, config)
    ids, t = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["t"])
    step = stepper(squared_error(adapted, frozen, ids, t))
    decay = config["optimiser"].get("decay", 0.0)
    name = config["optimiser"]["name"]
    if name == "SGD":  # torch's decay is a part of the gradient
        tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(RATE))
    else:
        tx = optax.adamw(RATE, weight_decay=decay)
    if rates is None:
        tx = adapted.optimizer(tx, frozen)
    else:
        tx = optax.chain(tx, scale_updates(rates))
    trained = descend(lambda trainable: step(trainable)[1], trainable, tx)["adapters"]
    theirs = to_factors(group(arrays, "trained"))
    return {
        path: {name: float(np.abs(x - theirs[path][name]).max()) for name, x in factors.items()}
        for path, factors in trained.items()
    }


# -- dropout ---------------------------------------------------------------------------------------


def with_kept(kept):
    """Dropout that keeps PEFT's entries instead of random ones; modules differ in width."""
    by_width = {mask.shape[-1]: jnp.asarray(mask) for mask in kept.values()}
    assert len(by_width) == len(kept)
    draw = mock.Mock(side_effect=lambda key, p, shape: by_width[shape[-1]].reshape(shape))
    return mock.patch.object(jax.random, "bernoulli", draw)


def in_training(arrays, config):
    """`(trainable, loss, output, gradient)` of ours, with PEFT's entries dropped."""
    adapted, trainable, frozen, _ = begin(arrays, config)
    ids, t = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["t"])
    loss_of = squared_error(adapted, frozen, ids, t, dropout_key=jax.random.key(0))
    with with_kept(group(arrays, "kept")) as draw:
        (value, y), gradient = stepper(loss_of)(trainable)
    assert draw.call_count >= len(group(arrays, "kept"))
    return trainable, value, y, gradient["adapters"]


def assert_agrees_in_training(arrays, config):
    _, value, y, gradient = in_training(arrays, config)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient, to_factors(group(arrays, "grad")), 1e-12)


def dora_in_training(arrays, config, base_is_dropped):
    """A `trainable -> (loss, output)`: DoRA with dropout, written out, of either kind.

    With g = m / ||V||, ours is g (x W + s drop(x) A^T B), and where the base is dropped too, as in
    PEFT and the authors' code, x W + (g - 1) drop(x) W + g s drop(x) A^T B.
    """
    params = {name: jnp.asarray(value) for name, value in group(arrays, "base0").items()}
    kept = group(arrays, "kept")
    ids, t = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["t"])

    def linear(x, module, adapters):
        w, bias = params[f"{module}.weight"].T, params[f"{module}.bias"][None, None]
        if module not in kept:
            return x @ w + bias
        factors, scale = adapters[f"{module}.weight"], variant_of(config, module).scaling()
        dropped = jnp.where(kept[module], x / (1 - config["lora_dropout"]), 0)
        update = scale * factors["a"].T @ factors["b"]
        norm = lax.stop_gradient(jnp.linalg.norm(w + update, axis=0))
        gain = (factors["m"] / norm)[None, None]
        if base_is_dropped:
            return x @ w + (gain - 1) * (dropped @ w) + gain * (dropped @ update) + bias
        return gain * (x @ w + dropped @ update) + bias

    def loss_of(trainable):
        x = params["embed.weight"][ids]
        x = jnp.tanh(x @ params["conv.weight"] + params["conv.bias"][None, None])
        x = jnp.tanh(linear(x, "l1", trainable["adapters"]))
        y = linear(x, "l2", trainable["adapters"])
        return ((y - t) ** 2).mean(), y

    return loss_of


def assert_dora_drops_less(arrays, config):
    """The difference: PEFT drops entries of a part of the base term too. Each by its formula."""
    trainable, value, y, gradient = in_training(arrays, config)
    theirs = to_factors(group(arrays, "grad"))
    for dropped, loss, out, grads in (
        (True, arrays["loss"], arrays["y"], theirs),
        (False, value, y, gradient),
    ):
        loss_of = dora_in_training(arrays, config, base_is_dropped=dropped)
        (expected, output), slope = stepper(loss_of)(trainable)
        np.testing.assert_allclose(out, output, atol=1e-12, rtol=0)
        np.testing.assert_allclose(loss, expected, atol=1e-12, rtol=0)
        assert_trees_close(grads, slope["adapters"], 1e-12)
    assert np.abs(y - arrays["y"]).max() > 1e-3


# -- IA3 -------------------------------------------------------------------------------------------


def assert_ia3_scales_biases(arrays, config):
    """The difference: PEFT rescales what comes out of a layer, so its bias too; here the matrix.

    With the biases rescaled by hand, ours is PEFT's: output, gradients, merged weights.
    """
    adapted, trainable, frozen, params = begin(arrays, config)
    ids, t = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["t"])

    def theirs(trainable):
        merged = dict(adapted.merge(trainable, frozen))
        for module in config["target_modules"]:
            if variant_of(config, module).scales == "outputs":
                scale = trainable["adapters"][f"{module}.weight"]["l"]
                merged[f"{module}.bias"] = scale * params[f"{module}.bias"]
        return merged

    def loss_of(trainable):
        y = forward(theirs(trainable), ids)
        return ((y - t) ** 2).mean(), y

    (value, y), gradient = stepper(loss_of)(trainable)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient["adapters"], to_factors(group(arrays, "grad")), 1e-12)
    assert_trees_close(theirs(trainable), group(arrays, "merged"), 1e-12)

    ours = adapted.apply(trainable, frozen, ids)
    np.testing.assert_allclose(ours, forward(adapted.merge(trainable, frozen), ids), atol=1e-12)
    assert np.abs(ours - y).max() > 1e-3
