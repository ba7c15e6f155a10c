"""eqx-zoo: Equinox modules as parameters."""

import equinox as eqx
import eqx_zoo
import jax

from zoo.family import Family

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
}


def llama() -> Family:
    config = {"architectures": ["LlamaForCausalLM"], **SIZES, "num_key_value_heads": 1}
    key = jax.random.key(0)
    model = eqx.filter_jit(eqx_zoo.CausalLM)(eqx_zoo.Config.from_hf(config), key=key)
    ids = jax.random.randint(jax.random.key(1), (6,), 0, 50)
    return Family(lambda model, ids: model(ids)[0], model, (ids,))


def qwen3_moe() -> Family:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    config = {"architectures": ["Qwen3MoeForCausalLM"], **SIZES, **experts}
    key = jax.random.key(0)
    model = eqx.filter_jit(eqx_zoo.CausalLM)(eqx_zoo.Config.from_hf(config), key=key)
    ids = jax.random.randint(jax.random.key(1), (6,), 0, 50)
    return Family(lambda model, ids: model(ids)[0], model, (ids,))


def bert() -> Family:
    sizes = {"layer_norm_eps": 1e-5, "max_position_embeddings": 16, "type_vocab_size": 2}
    config = {"architectures": ["BertModel"], **SIZES, **sizes}
    key = jax.random.key(0)
    model = eqx.filter_jit(eqx_zoo.Encoder)(eqx_zoo.EncoderConfig.from_hf(config), key=key)
    ids = jax.random.randint(jax.random.key(1), (6,), 0, 50)
    return Family(lambda model, ids: model(ids), model, (ids,))
