"""AdaLoRA against PEFT's traces, algorithm 1 written out in NumPy, and closed forms."""

import dataclasses
import functools
import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adalora_net import assert_follows, random_like, stepper
from hypothesis import given, settings, strategies as st
from jax import lax
from make_fixtures.adalora import CASES, CLIPS, FIXTURES

import lora_jax as lj
from lora_jax.variant import Base, Factors
from variants.adalora import AdaLoRA

KEY = jax.random.key(0)


# -- the reference mode is PEFT ----------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case != "every_step"])
def test_training_is_pefts_step_by_step(case, x64):
    arrays = np.load(FIXTURES / f"adalora_{case}.npz")
    assert_follows(arrays, CASES[case], CLIPS.get(case, np.inf))


# -- the paper's mode is its algorithm 1 -------------------------------------------------------

SHAPES = {"v": (6, 5), "w": (5, 7)}
LAYERS = 3
SETTINGS = [
    {"rank": 4, "target_rank": 2, "total_steps": 20, "t_init": 3, "t_final": 4},
    {"rank": 4, "target_rank": 1, "total_steps": 17, "t_init": 0, "t_final": 0, "delta_t": 2}
    | {"alpha": 1.0, "orthogonality": 0.01},
    {"rank": 4, "target_rank": 3, "total_steps": 22, "delta_t": 3, "beta1": 0.5, "beta2": 0.9},
]


def examples(steps, seed=0, batch=3):
    """Inputs and wanted outputs of each step, for `v` and for each layer of `w`."""
    random = np.random.RandomState(seed)
    stacks = {"v": (steps, batch), "w": (steps, LAYERS, batch)}
    return [
        {name: random.randn(*stacks[name], SHAPES[name][side]) for name in SHAPES}
        for side in (0, 1)
    ]


def weights(seed=1):
    random = np.random.RandomState(seed)
    return {"v": random.randn(*SHAPES["v"]), "w": random.randn(LAYERS, *SHAPES["w"])}


def products(params, x):
    """The product of each matrix with an input of its own; layers scanned or in a dictionary."""
    if isinstance(params["w"], dict):
        each = [x["w"][layer] @ w for layer, w in params["w"].items()]
        return {"v": x["v"] @ params["v"], "w": jnp.stack(each)}
    w = lax.scan(lambda _, pair: (None, pair[0] @ pair[1]), None, (x["w"], params["w"]))[1]
    return {"v": x["v"] @ params["v"], "w": w}


def sum_of_errors(y, t):
    return (
        sum(((y["w"][layer] - t["w"][layer]) ** 2).mean() for layer in range(LAYERS))
        + ((y["v"] - t["v"]) ** 2).mean()
    )


def train(variant, params, trainable=None, targets=("v", "w.*"), rate=0.02):
    """The step; trainables and state at a random start, and after every step of a schedule."""
    x, t = examples(40)
    params = jax.tree.map(jnp.asarray, params)
    adapted = lj.adapt(products, variant, list(targets))
    fresh, frozen = adapted.init(KEY, params, {name: a[0] for name, a in x.items()})
    trainable = random_like(fresh) if trainable is None else trainable
    state = adapted.init_state(trainable, frozen)
    step, history = stepper(adapted, frozen, sum_of_errors, rate), [(trainable, state)]
    for number in range(variant.total_steps):
        batch = ({name: a[number] for name, a in each.items()} for each in (x, t))
        trainable, state, _ = step(trainable, state, jnp.asarray(number), *batch)
        history.append((trainable, state))
    assert step.count() == 1  # one program for the whole schedule
    return step, frozen, history


@functools.cache
def trained(number):
    """`train` by the settings of that number."""
    return train(AdaLoRA(**SETTINGS[number]), weights())


def unstacked(adapters):
    """{path: factors} of single matrices, in order, from those of `v` and the stack `w`."""
    single = {"v": adapters["v"]}
    for layer in range(LAYERS):
        single[f"w/{layer}"] = {name: np.asarray(x)[layer] for name, x in adapters["w"].items()}
    return single


def algorithm_1(variant, matrices, xs, ts, factors, rate):
    """The paper's algorithm 1 over single matrices, with gradients by hand; yields every step.

    The loss is the sum of the mean squared errors of `x @ W'` of each matrix.
    """
    v, scale, gamma = variant, variant.alpha / variant.rank, variant.orthogonality
    t_init = v.total_steps // 10 if v.t_init is None else v.t_init
    t_final = v.total_steps // 2 if v.t_final is None else v.t_final
    fixed = v.total_steps - t_final
    smooth = {k: {n: (0 * f, 0 * f) for n, f in each.items()} for k, each in factors.items()}
    kept = {k: np.ones(v.rank, bool) for k in factors}
    for t in range(1, v.total_steps + 1):
        scores = {}
        for k, f in factors.items():
            a, b, e = f["a"], f["b"], f["e"]
            x, wanted = xs[k][t - 1], ts[k][t - 1]
            y = x @ (matrices[k] + scale * a.T @ np.diag(e) @ b)
            slope = x.T @ (2 * (y - wanted) / y.size)  # of the loss, by W'
            identity = np.eye(v.rank)
            grads = {
                "a": scale * e[:, None] * (b @ slope.T) + 4 * gamma * (a @ a.T - identity) @ a,
                "b": scale * e[:, None] * (a @ slope) + 4 * gamma * (b @ b.T - identity) @ b,
                "e": scale * np.einsum("ri,io,ro->r", a, slope, b),
            }
            s = {}
            for name in "abe":
                mean, spread = smooth[k][name]
                if t < fixed:
                    now = np.abs(f[name] * grads[name])  # equation 8
                    mean = v.beta1 * mean + (1 - v.beta1) * now  # 9
                    spread = v.beta2 * spread + (1 - v.beta2) * np.abs(now - mean)  # 10
                    smooth[k][name] = mean, spread
                s[name] = mean * spread  # 11
            scores[k] = s["e"] + s["a"].mean(1) + s["b"].mean(1)  # 7
            factors[k] = {name: f[name] - rate * grads[name] for name in "abe"}
        first, last = len(factors) * v.rank, len(factors) * v.target_rank
        part = min(max(Fraction(t - t_init, fixed - t_init), 0), 1)
        budget = round(last + (first - last) * (1 - part) ** 3)  # 12
        choose = t == fixed or (t_init < t < fixed and t % v.delta_t == 0)
        if choose:
            places = [(-s, number, k) for k in scores for number, s in enumerate(scores[k])]
            chosen = {(k, number) for _, number, k in sorted(places)[:budget]}
            kept = {k: np.array([(k, i) in chosen for i in range(v.rank)]) for k in factors}
        for k, f in factors.items():
            if choose or t >= fixed:
                f["e"] = np.where(kept[k], f["e"], 0)
        yield factors, kept


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_training_is_algorithm_1(number, x64):
    variant, rate = AdaLoRA(**SETTINGS[number]), 0.02
    _, _, ((start, _), *history) = trained(number)
    numbers = jax.tree.map(np.asarray, unstacked(start["adapters"]))

    def single(arrays, axis):
        layers = {f"w/{i}": np.take(np.asarray(arrays["w"]), i, axis) for i in range(LAYERS)}
        return {"v": arrays["v"], **layers}

    x, t = (single(each, 1) for each in examples(40))
    expected = algorithm_1(variant, single(weights(), 0), x, t, numbers, rate)
    for number, ((mine, state), (theirs, kept)) in enumerate(zip(history, expected, strict=True)):
        for path, factors in unstacked(mine["adapters"]).items():
            for name, value in factors.items():
                np.testing.assert_allclose(value, theirs[path][name], atol=1e-10, err_msg=number)
        ours = single(state[0]["kept"], 0)
        for path, value in kept.items():
            np.testing.assert_array_equal(ours[path], value)
    used = sum(np.count_nonzero(f["e"]) for f in unstacked(mine["adapters"]).values())
    assert used == variant.target_rank * (1 + LAYERS)


@pytest.mark.parametrize("mode, layers", [("paper", [0, 2]), ("reference", [0, 2])])
def test_a_stack_trains_as_its_layers_alone(mode, layers, x64):
    """Layers that are left out take no part in the budget, nor in the penalty."""
    variant = AdaLoRA(rank=4, target_rank=2, total_steps=12, t_init=2, t_final=3, mode=mode)
    params = weights()
    which = slice(layers[0], None, layers[1] - layers[0])
    _, frozen, together = train(variant, params, targets=["v", lj.layers("w", which)])
    start = unstacked(together[0][0]["adapters"])
    for layer in {0, 1, 2} - set(layers):
        del start[f"w/{layer}"]
    params["w"] = {layer: params["w"][layer] for layer in range(LAYERS)}
    targets = ["v", *(f"w/{layer}" for layer in layers)]
    _, frozen_apart, apart = train(variant, params, {"adapters": start, "params": {}}, targets)
    np.testing.assert_array_equal(frozen.shared[0]["budget"], frozen_apart.shared[0]["budget"])
    for (mine, state), (theirs, state_apart) in zip(together[1:], apart[1:], strict=True):
        mine, kept = unstacked(mine["adapters"]), state[0]["kept"]
        for path, factors in theirs["adapters"].items():
            for name, value in factors.items():
                np.testing.assert_allclose(mine[path][name], value, atol=1e-11)
            ours = np.asarray(kept["w"])[int(path[2:])] if path[0] == "w" else kept[path]
            np.testing.assert_array_equal(ours, state_apart[0]["kept"][path])


# -- budgets, scores, penalty ------------------------------------------------------------------


@settings(max_examples=40)
@given(
    ranks=st.integers(1, 20).flatmap(lambda r: st.tuples(st.just(r), st.integers(1, r))),
    total=st.integers(3, 90),
    parts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    matrices=st.integers(1, 80),
)
def test_the_budget_falls_cubically(ranks, total, parts, matrices):
    t_init = int(parts[0] * (total - 1))
    t_final = int(parts[1] * (total - 1 - t_init))
    rank, target = ranks
    steps = {"total_steps": total, "t_init": t_init, "t_final": t_final}
    first, last = rank * matrices, target * matrices
    shapes = [(4, 4)] * matrices
    for mode in ("paper", "reference"):
        variant = AdaLoRA(rank=rank, target_rank=target, mode=mode, **steps)
        budget = np.asarray(variant.init_shared(KEY, shapes, jnp.float32)["budget"])
        assert len(budget) == total + 1 and (np.diff(budget) <= 0).all()
        for t, b in enumerate(budget.tolist()):
            part = min(max(Fraction(t - t_init, total - t_final - t_init), 0), 1)
            exact = last + (first - last) * (1 - part) ** 3
            if mode == "paper":
                assert abs(b - exact) <= 0.5 + 1e-9
            elif t_init < t <= total - t_final:  # as PEFT computes it, rounding included
                left = 1 - (t - t_init) / (total - t_final - t_init)
                assert b == int((first - last) * (left**3) + last)
            else:
                assert b == exact


def hand_made(variant, seed=0, dtypes=(jnp.float64, jnp.float64)):
    """Factors of a stack of two and of a single matrix, with what they share."""
    shapes, random = {"p": (2, 6, 5), "q": (7, 4)}, np.random.RandomState(seed)
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    shared = variant.init_shared(KEY, [(6, 5), (6, 5), (7, 4)], widest)
    factors = {}
    for (path, (*stack, inputs, outputs)), dtype in zip(shapes.items(), dtypes, strict=True):
        sizes = {"a": (variant.rank, inputs), "b": (variant.rank, outputs), "e": (variant.rank,)}
        trainable = {n: random.randn(*stack, *s).astype(dtype) for n, s in sizes.items()}
        constants = {"scale": np.full(stack, variant.scaling(), dtype)}
        factors[path] = Factors(trainable, constants | shared)
    return factors


@pytest.mark.parametrize("active", [[True, True], [False, True]])
@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_the_penalty_is_equation_4_or_the_mean_norm(mode, active, x64):
    """Summed, or averaged, over the layers that are adapted."""
    variant = AdaLoRA(rank=3, target_rank=1, orthogonality=0.3, mode=mode)
    factors = hand_made(variant)
    factors["p"].constants["active"] = np.array(active)
    p, q = (each.trainable for each in factors.values())
    norms = [
        np.linalg.norm(x @ x.T - np.eye(3)) for name in "ab" for x in (*p[name][active], q[name])
    ]
    expected = np.square(norms).sum() if mode == "paper" else np.mean(norms)
    np.testing.assert_allclose(jax.jit(variant.penalty)(factors), 0.3 * expected, rtol=1e-13)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_the_penalty_of_orthonormal_rows_is_zero_and_so_is_its_gradient(mode, x64):
    variant = AdaLoRA(rank=3, target_rank=1, mode=mode)
    factors = hand_made(variant)

    def penalty(trainable):
        return variant.penalty({p: f._replace(trainable=trainable[p]) for p, f in factors.items()})

    def rows(name, x):
        return x if name == "e" else np.broadcast_to(np.eye(*x.shape[-2:]), x.shape)

    eyes = {p: {n: rows(n, x) for n, x in f.trainable.items()} for p, f in factors.items()}
    value, gradient = jax.jit(jax.value_and_grad(penalty))(eyes)
    assert value == 0 and all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_with_equal_scores_the_first_triplets_stay(mode, x64):
    """PEFT drops all that are equal to the threshold; here the budget is kept exactly."""
    variant = AdaLoRA(rank=4, target_rank=1, total_steps=20, t_init=2, t_final=10, mode=mode)
    factors = hand_made(variant)
    start = np.concatenate([np.ravel(each.trainable["e"]) for each in factors.values()])
    grads = {path: jax.tree.map(np.zeros_like, each.trainable) for path, each in factors.items()}
    # once ranks are fixed nothing is chosen any more, and here nothing was before
    budget = factors["p"].constants["budget"].tolist()[:11] + 10 * [12]
    update, state = jax.jit(variant.update), variant.init_state(factors)
    for t in (1, 2, 3, 7, 10, 11, 19, 20):
        number = jnp.asarray(t - 1)
        after = update(state, factors, factors, grads, number)[1]
        e = np.concatenate([np.ravel(after[path]["e"]) for path in factors])
        np.testing.assert_array_equal(e, np.where(np.arange(12) < budget[t], start, 0))


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_numbers_are_read_from_arrays(mode, x64):
    variant = AdaLoRA(rank=3, target_rank=2, total_steps=20, mode=mode)
    factors, grads = hand_made(variant), hand_made(variant, seed=1)
    grads = {path: each.trainable for path, each in grads.items()}
    numbers = {"beta1": 0.2, "beta2": 0.3, "orthogonality": 5.0, "alpha": 1.0, "delta_t": 7}
    steps = {"total_steps": 90, "t_init": 1, "t_final": 50, "target_rank": 1}
    other = dataclasses.replace(variant, **numbers, **steps)

    moved = {path: f._replace(trainable=random_like(f.trainable)) for path, f in factors.items()}

    @partial(jax.jit, static_argnums=0)
    def run(variant, factors, moved, grads):
        state = variant.init_state(factors)
        update = variant.update(state, factors, moved, grads, jnp.asarray(5))
        return variant.penalty(factors), update

    mine, theirs = (jax.tree.leaves(run(v, factors, moved, grads)) for v in (variant, other))
    for one, two in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, two)


def test_matrices_of_different_dtypes_share_a_budget(x64):
    variant = AdaLoRA(rank=4, target_rank=1, total_steps=4, t_init=0, t_final=2)
    factors = hand_made(variant, dtypes=(jnp.float32, jnp.float64))
    grads = {path: random_like(f.trainable) for path, f in factors.items()}
    state = variant.init_state(factors)
    state, after = jax.jit(variant.update)(state, factors, factors, grads, jnp.asarray(1))
    assert sum(np.count_nonzero(each["e"]) for each in after.values()) == 3
    for path, each in factors.items():
        same = jax.tree.map(lambda x, y: x.dtype == y.dtype, each.trainable, after[path])
        assert all(jax.tree.leaves(same))
    assert jax.eval_shape(variant.penalty, factors).dtype == jnp.float64


# -- the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", ["io", "oi"])
def test_each_side_is_drawn_by_its_own_width(roles):
    base = Base(np.zeros((50, 800) if roles == "io" else (800, 50), jnp.bfloat16), roles)
    variant = AdaLoRA(rank=20, initialization="kaiming_uniform")
    trainable, _ = jax.jit(lambda key: variant.init(key, base))(KEY)
    for name, width in (("a", 50), ("b", 800)):
        bound, x = 1 / math.sqrt(width), np.asarray(trainable[name])
        assert x.shape == (20, width) and x.dtype == np.float32
        assert 0.98 * bound < np.abs(x).max() <= bound


def test_the_weight_is_p_lambda_q(x64):
    for mode, divisor in (("paper", 3), ("reference", 3 + 1e-5)):
        variant = AdaLoRA(rank=3, target_rank=1, alpha=5.0, mode=mode)
        base = Base(np.random.RandomState(0).randn(6, 7), "io")
        trainable = {"a": (3, 6), "b": (3, 7), "e": (3,)}
        trainable = {n: np.random.RandomState(1).randn(*shape) for n, shape in trainable.items()}

        @jax.jit
        def weight(base, trainable, variant=variant):
            return variant.weight(base, variant.init(KEY, base)._replace(trainable=trainable))

        a, b, e = (trainable[name] for name in "abe")
        expected = base.value + 5.0 / divisor * a.T @ np.diag(e) @ b
        np.testing.assert_allclose(weight(base, trainable), expected, atol=1e-13)
        assert variant.count((6, 7)) == a.size + b.size + e.size


def test_layers_of_a_stack_do_not_differ():
    rules = {lj.layers("w", rank - 1): AdaLoRA(rank=rank, target_rank=1) for rank in (1, 2)}
    params, x = weights(), {"v": np.ones((2, 6)), "w": np.ones((LAYERS, 2, 5))}
    with pytest.raises(ValueError, match="'w': layers of one stacked weight cannot mix AdaLoRA"):
        lj.adapt(products, targets=rules).init(KEY, params, x)
