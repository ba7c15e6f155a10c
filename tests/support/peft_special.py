"""Comparisons with PEFT beyond `peft_net.assert_agrees`: starts, optimisers, dropout, IA3."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from make_fixtures.peft_lora import RATE, STEPS
from peft_net import (
    adapt,
    assert_trees_close,
    forward,
    group,
    squared_error,
    to_factors,
    trainable_of,
    variant_of,
    within,
)

from lora_jax.transform.adapted_optimizer import scale_updates


def assert_starts_alike(arrays, fresh, frozen):
    """Where a start has nothing random: all of it, or for PiSSA and OLoRA all but signs."""
    fresh, constants_of = jax.tree.map(np.asarray, (fresh["adapters"], frozen.constants))
    compared = 0
    for path, theirs in jax.tree.map(np.asarray, to_factors(group(arrays, "start"))).items():
        ours, constants = fresh[path], constants_of[path]
        names = [n for n in ("m", "l", "e") if n in ours]
        others = ("a", "b", "c", "d", "q", "v", "w", "lambda", "gamma", "theta", "alpha", "s")
        names += [n for n in others if n in ours and np.ptp(theirs[n]) == 0]
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
    base = group(arrays, "base0")
    fresh, _ = jax.jit(adapt(config).init)(jax.random.key(0), base, arrays["ids"])
    errors = []
    for path, theirs in to_factors(group(arrays, "start")).items():
        variant, w = variant_of(config, path.removesuffix(".weight")), base[path].T
        values = np.linalg.svd(w, compute_uv=False)
        ours, theirs = jax.tree.map(np.asarray, (fresh["adapters"][path], theirs))
        starts = [each["a"].T @ each["b"] for each in (ours, theirs)]
        rest = [np.linalg.norm(w - variant.scaling() * start) for start in starts]
        errors.append((np.linalg.norm(values[variant.rank :]), *rest))
    return errors


def assert_disabling_differs(arrays, config):
    """The difference: PEFT with its adapters off computes with the residual that it has left.

    Here what is left is the base, bit by bit. Returns our own start, trainable and frozen.
    """
    ids, base = arrays["ids"], group(arrays, "base0")
    left = base | group(arrays, "residual")
    np.testing.assert_allclose(forward(left, ids, np.tanh), arrays["y_base"], atol=1e-12, rtol=0)
    plain = forward(base, ids, np.tanh)
    assert np.abs(plain - arrays["y_base"]).max() > 1e-3

    adapted = adapt(config)

    @jax.jit
    def uses(base, trained):
        begun = fresh, frozen = adapted.init(jax.random.key(0), base, ids)
        disabled = adapted.disable({**fresh, "adapters": trained}, frozen)
        return begun, adapted.apply(fresh, frozen, ids), disabled

    begun, y, disabled = uses(base, to_factors(group(arrays, "trained")))
    np.testing.assert_allclose(y, plain, atol=1e-12)
    chex.assert_trees_all_equal(disabled, base)
    return begun


# -- LoRA+ and Riemannian LoRA ---------------------------------------------------------------------


def optimiser_errors(arrays, config, rates=None):
    """How far our training is from PEFT's, and what has moved least, by path and name.

    Args:
      rates: {path: {name: ratio}} in the place of those that the variant sets.
    """
    arrays = dict(arrays)
    decay = config["optimiser"].get("decay", 0.0)
    if config["optimiser"]["name"] == "SGD":  # torch's decay is a part of the gradient
        given = optax.chain(optax.add_decayed_weights(decay), optax.sgd(RATE))
    else:
        given = optax.adamw(RATE, weight_decay=decay)

    def descended(adapted, trainable, frozen, _):
        loss_of = squared_error(adapted, frozen, arrays["ids"], arrays["t"])
        if rates is None:
            tx = adapted.optimizer(given, frozen)
        else:
            tx = optax.chain(given, scale_updates(rates))

        def move(carry, _):
            trainable, state = carry
            gradient = jax.grad(loss_of, has_aux=True)(trainable)[0]
            updates, state = tx.update(gradient, state, trainable)
            return (optax.apply_updates(trainable, updates), state), None

        return lax.scan(move, (trainable, tx.init(trainable)), length=STEPS)[0][0]["adapters"]

    trained, _ = within(arrays, config, descended)
    theirs = to_factors(group(arrays, "trained"))
    return {
        path: {
            name: float(np.abs(np.asarray(x) - theirs[path][name]).max())
            for name, x in factors.items()
        }
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
    arrays = dict(arrays)

    def computed(adapted, trainable, frozen, _):
        options = {"dropout_key": jax.random.key(0)}
        loss_of = squared_error(adapted, frozen, arrays["ids"], arrays["t"], **options)
        return trainable, jax.value_and_grad(loss_of, has_aux=True)(trainable)

    with with_kept(group(arrays, "kept")) as draw:
        (trainable, ((value, y), gradient)), _ = within(arrays, config, computed)
    assert draw.call_count >= len(group(arrays, "kept"))
    return trainable, value, y, gradient


def assert_agrees_in_training(arrays, config):
    _, value, y, gradient = in_training(arrays, config)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient, trainable_of(group(arrays, "grad")), 1e-12)


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
        (False, value, y, gradient["adapters"]),
    ):
        loss_of = dora_in_training(arrays, config, base_is_dropped=dropped)
        (expected, output), slope = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(trainable)
        np.testing.assert_allclose(out, output, atol=1e-12, rtol=0)
        np.testing.assert_allclose(loss, expected, atol=1e-12, rtol=0)
        assert_trees_close(grads, slope["adapters"], 1e-12)
    assert np.abs(y - arrays["y"]).max() > 1e-3


# -- IA3 -------------------------------------------------------------------------------------------


def assert_ia3_scales_biases(arrays, config):
    """The difference: PEFT rescales what comes out of a layer, so its bias too.

    Here that is a setting; without it, only the matrix is. With the biases rescaled by hand, ours
    is PEFT's: output, gradients, merged weights.
    """
    arrays = dict(arrays)

    def computed(adapted, trainable, frozen, params):
        def theirs(trainable):
            merged = dict(adapted.merge(trainable, frozen))
            for module in config["target_modules"]:
                if variant_of(config, module).scales == "outputs":
                    scale = trainable["adapters"][f"{module}.weight"]["l"]
                    merged[f"{module}.bias"] = scale * params[f"{module}.bias"]
            return merged

        def loss_of(trainable):
            y = forward(theirs(trainable), arrays["ids"])
            return ((y - arrays["t"]) ** 2).mean(), y

        ours = adapted.merge(trainable, frozen), adapted.apply(trainable, frozen, arrays["ids"])
        step = jax.value_and_grad(loss_of, has_aux=True)
        return step(trainable), theirs(trainable), ours

    (((value, y), gradient), theirs, (merged, ours)), _ = within(arrays, config, computed)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient["adapters"], to_factors(group(arrays, "grad")), 1e-12)
    assert_trees_close(theirs, group(arrays, "merged"), 1e-12)

    merged = jax.tree.map(np.asarray, merged)
    np.testing.assert_allclose(ours, forward(merged, arrays["ids"], np.tanh), atol=1e-12)
    assert np.abs(ours - y).max() > 1e-3
