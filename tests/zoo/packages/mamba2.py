"""mamba2-jax: Flax NNX modules."""

import jax
import mamba2_jax
from flax import nnx

import lora_jax as lj
from zoo.family import Family


def language_model() -> Family:
    sizes = {"hidden_size": 16, "state_size": 8, "head_dim": 8, "chunk_size": 4}
    config = mamba2_jax.Mamba2Config(vocab_size=50, num_hidden_layers=1, **sizes)
    model = nnx.jit(lambda: mamba2_jax.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0)))()
    forward, params = lj.from_nnx(model)
    ids = jax.random.randint(jax.random.key(0), (2, 8), 0, 50)
    return Family(lambda params, ids: forward(params, ids)["logits"], params, (ids,))


def forecaster() -> Family:
    model = nnx.jit(
        lambda: mamba2_jax.Mamba2Forecaster(
            input_dim=3,
            d_model=16,
            n_layers=1,
            output_dim=1,
            forecast_horizon=4,
            d_state=8,
            headdim=8,
            chunk_size=4,
            rngs=nnx.Rngs(0),
        )
    )()
    forward, params = lj.from_nnx(model)
    series = jax.random.normal(jax.random.key(0), (2, 8, 3))
    return Family(forward, params, (series,))
