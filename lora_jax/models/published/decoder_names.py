"""The place of each decoder parameter in a published checkpoint: one table to read and to write.

As torch_names.py; but here a tensor may hold several parameters side by side (GPT-2 joins queries,
keys and values), and may be stored as (in, out), as in GPT-2.
"""

from collections.abc import Sequence

from lora_jax.models.families.gpt2_config import GPT2Config
from lora_jax.models.families.llama_config import LlamaConfig
from lora_jax.models.published.placed import LEAF, Place
from lora_jax.suggest import nearest

DecoderConfig = LlamaConfig | GPT2Config

_LLAMA = {
    "embedding": "model.embed_tokens",
    "layers/attention_norm": "model.layers.{}.input_layernorm",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj",
    "layers/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "layers/attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
    "layers/gate": "model.layers.{}.mlp.gate_proj",
    "layers/up": "model.layers.{}.mlp.up_proj",
    "layers/down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
_GPT2 = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "layers/attention_norm": "transformer.h.{}.ln_1",
    "layers/attention/query": "transformer.h.{}.attn.c_attn",
    "layers/attention/key": "transformer.h.{}.attn.c_attn",
    "layers/attention/value": "transformer.h.{}.attn.c_attn",
    "layers/attention/output": "transformer.h.{}.attn.c_proj",
    "layers/mlp_norm": "transformer.h.{}.ln_2",
    "layers/up": "transformer.h.{}.mlp.c_fc",
    "layers/down": "transformer.h.{}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
# Masks and frequencies, which older checkpoints store in a layer beside its weights.
_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")


def decoder_prefix(config: DecoderConfig) -> str:
    """The prefix of all tensor names but the head's; a checkpoint may omit it."""
    return "transformer." if config.model_type == "gpt2" else "model."


def places(path: str, config: DecoderConfig) -> list[Place]:
    """The places of a parameter: one for each layer if it is stacked, else a single one."""
    module, _, leaf = path.rpartition("/")
    gpt2 = config.model_type == "gpt2"
    names = _GPT2 if gpt2 else _LLAMA
    if leaf not in LEAF or module not in names:
        raise ValueError(f"{path!r} is not a parameter of a {config.model_type} decoder")
    stacked = path.startswith("layers/")
    part = None
    if gpt2 and module.rpartition("/")[2] in ("query", "key", "value"):
        part = ("query", "key", "value").index(module.rpartition("/")[2])
    transposed = leaf == "kernel" and not (gpt2 and stacked)
    copies = config.num_hidden_layers if stacked else 1
    return [
        Place(f"{names[module].format(i)}.{LEAF[leaf]}", transposed, part) for i in range(copies)
    ]


def check_no_others(
    stored: Sequence[str], known: Sequence[str], config: DecoderConfig, folder: object
) -> None:
    """Raise a ValueError for a tensor in a layer that the model would not use.

    Without it, the model would compute wrongly. Such a tensor is a bias or a norm that config.json
    does not mention, or belongs to a layer beyond the number there.
    """
    prefix = decoder_prefix(config)
    layers = prefix + ("h." if config.model_type == "gpt2" else "layers.")
    bare = {name.removeprefix(prefix) for name in known}
    for name in stored:
        own = name.removeprefix(prefix)
        inside = (prefix + own).startswith(layers)
        if inside and own not in bare and not own.endswith(_BUFFERS):
            near = nearest(name, known)
            raise ValueError(
                f"{folder}: a {config.model_type} with the {config.num_hidden_layers} layers of "
                f"config.json does not use tensor {name!r}; nearest that it uses: {near}"
            )
