"""Google's Tunix: Flax NNX modules, called with positions and a mask."""

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.models.gemma import model as gemma_model
from tunix.models.llama3 import model as llama_model
from tunix.models.qwen3 import model as qwen_model

import lora_jax as lj
from zoo.family import Family

SIZES = {
    "num_layers": 1,
    "embed_dim": 16,
    "hidden_dim": 32,
    "num_heads": 2,
    "head_dim": 8,
    "num_kv_heads": 1,
}
ROPE = {"vocab_size": 50, "rope_theta": 10_000, "norm_eps": 1e-6}


def llama3() -> Family:
    config = llama_model.ModelConfig(**SIZES, **ROPE)
    return _decoder(lambda: llama_model.Llama3(config, rngs=nnx.Rngs(0)))


def qwen3() -> Family:
    config = qwen_model.ModelConfig(**SIZES, **ROPE, use_tied_embedding=True)
    return _decoder(lambda: qwen_model.Qwen3(config, rngs=nnx.Rngs(0)))


def qwen3_moe() -> Family:
    config = qwen_model.ModelConfig(**SIZES, **ROPE, num_experts=4, num_experts_per_tok=2)
    return _decoder(lambda: qwen_model.Qwen3(config, rngs=nnx.Rngs(0)))


def gemma() -> Family:
    config = gemma_model.ModelConfig(
        num_embed=50,
        **SIZES,
        final_logit_softcap=30.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=(gemma_model.AttentionType.GLOBAL,),
    )
    return _decoder(lambda: gemma_model.Gemma(config, rngs=nnx.Rngs(0)))


def _decoder(make) -> Family:
    forward, params = lj.from_nnx(nnx.jit(make)())
    ids = jax.random.randint(jax.random.key(1), (2, 6), 0, 50)

    def logits(params, ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        mask = jnp.tril(jnp.ones((1, ids.shape[1], ids.shape[1]), bool))
        return forward(params, ids, positions, None, mask)[0]

    return Family(logits, params, (ids,))
