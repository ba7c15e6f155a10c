"""Schedules and AdamW against closed forms and a NumPy reference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lora_jax.training import optim
from lora_jax.transform.adapted_optimizer import scale_updates


@pytest.mark.parametrize("steps", [10, 100, 237])
@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5])
@pytest.mark.parametrize("kind", optim.SCHEDULES)
def test_schedule(kind, ratio, steps):
    rate, warmup = 3e-3, round(ratio * steps)
    found = optim.schedule(kind, rate, steps, ratio)(np.arange(steps))
    for step in range(steps):
        if step < warmup:
            expected = rate * (step + 1) / warmup
        else:
            part = (step - warmup) / (steps - warmup)
            down = {"linear": 1 - part, "cosine": (1 + np.cos(np.pi * part)) / 2, "constant": 1}
            expected = rate * down[kind]
        np.testing.assert_allclose(found[step], expected, rtol=1e-5, atol=1e-9)


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(ValueError, match="'cosin' is unknown; nearest: 'cosine'"):
        optim.schedule("cosin", 1e-3, 10)
    with pytest.raises(ValueError, match="warmup_ratio"):
        optim.schedule("linear", 1e-3, 10, 1.0)


def tree():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    return {
        "adapters": {"layers/kernel": {"a": draw(2, 3, 4), "b": draw(2, 3, 5)}},
        "params": {
            "classifier/kernel": draw(4, 2),
            "classifier/bias": draw(2),
            "layers/norm/scale": draw(2, 4),  # stacked: two axes, and still norms
            "layers/ln_1/weight": draw(2, 4),
            "layers/LayerNorm/weight": draw(2, 4),
            "layers/RMSNorm_0/weight": draw(2, 4),
            "layers/attention_norm/weight": draw(2, 4),
            "layers/normal/weight": draw(2, 4),
            "layers/norm1/linear/kernel": draw(2, 4),  # a matrix of an adaptive norm
            "layers/bias": draw(2, 4),
        },
    }


@pytest.mark.usefixtures("standard_promotion")
def test_adamw_is_the_papers_algorithm_with_clipping():
    rate, decay, clip, b1, b2, eps = 1e-2, 0.1, 0.5, 0.8, 0.95, 1e-6
    tx = optim.adamw(rate, weight_decay=decay, clip=clip, b1=b1, b2=b2, eps=eps)
    params = tree()
    matrices = ("a", "b", "classifier/kernel", "layers/normal/weight", "layers/norm1/linear/kernel")
    decays = dict.fromkeys(matrices, decay)
    state = tx.init(params)
    pairs = jax.tree_util.tree_leaves_with_path(params)
    names = [keys[-1].key for keys, _ in pairs]
    reference = [np.asarray(leaf, np.float64) for _, leaf in pairs]
    m = [np.zeros_like(p) for p in reference]
    v = [np.zeros_like(p) for p in reference]

    @jax.jit
    def advance(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(1, 6):
        grads = jax.tree.map(lambda p, s=step: np.cos(np.asarray(p) * s), params)
        flat = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        norm = np.sqrt(sum((g**2).sum() for g in flat))
        params, state = advance(grads, state, params)
        for i, gradient in enumerate(flat):
            g = gradient * min(1.0, clip / norm)
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            adam = (m[i] / (1 - b1**step)) / (np.sqrt(v[i] / (1 - b2**step)) + eps)
            reference[i] -= rate * (adam + decays.get(names[i], 0.0) * reference[i])
    for name, ours, theirs in zip(names, jax.tree.leaves(params), reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name)


def test_scale_updates_multiplies_only_what_is_named():
    updates = tree()
    rates = {"layers/kernel": {"b": jnp.array([2.0, 4.0])}}
    scaled, _ = scale_updates(rates).update(updates, optax.EmptyState())
    before, after = (t["adapters"]["layers/kernel"] for t in (updates, scaled))
    np.testing.assert_array_equal(after["a"], before["a"])
    np.testing.assert_allclose(after["b"][0], 2 * before["b"][0])
    np.testing.assert_allclose(after["b"][1], 4 * before["b"][1])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, scaled["params"], updates["params"]))


def test_scale_params_multiplies_only_the_parameters_that_match():
    updates = tree()
    tx = optim.scale_params(["classifier/.*"], 3.0)
    scaled, _ = tx.update(updates, tx.init(updates))
    chex.assert_trees_all_equal(scaled["adapters"], updates["adapters"])
    for path, update in updates["params"].items():
        ratio = 3 if path.startswith("classifier") else 1
        np.testing.assert_allclose(scaled["params"][path], ratio * update)
