"""DeepMind's Haiku: `apply` of a transformed function."""

import haiku as hk
import jax

from zoo.family import Family


def mlp() -> Family:
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 16, 4])(x)))
    x = jax.random.normal(jax.random.key(0), (8, 12))
    params = jax.jit(model.init)(jax.random.key(1), x)
    return Family(model.apply, params, (x,))


def attention() -> Family:
    def block(x):
        y = hk.LayerNorm(-1, True, True)(x)
        y = hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling())(y, y, y)
        return hk.Linear(12)(jax.nn.gelu(hk.Linear(24)(x + hk.Linear(12)(y))))

    model = hk.without_apply_rng(hk.transform(block))
    x = jax.random.normal(jax.random.key(0), (2, 6, 12))
    params = jax.jit(model.init)(jax.random.key(1), x)
    return Family(model.apply, params, (x,))


def lstm() -> Family:
    def network(xs):
        core = hk.LSTM(16)
        hidden, _ = hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))
        return hk.Linear(4)(hidden)

    model = hk.without_apply_rng(hk.transform(network))
    xs = jax.random.normal(jax.random.key(0), (5, 3, 8))
    params = jax.jit(model.init)(jax.random.key(1), xs)
    return Family(model.apply, params, (xs,))
