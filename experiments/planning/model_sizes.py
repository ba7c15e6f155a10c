"""Published sizes of models, in the form of their config.json; no weights are needed."""

SIZES = {
    "Llama 2 7B": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "Llama 2 70B": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
}


LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "num_key_value_heads": 8,
}
LLAMA_13B = {
    **SIZES["Llama 2 7B"],
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}

ON_THE_HUB = {
    "huggyllama/llama-7b": {**SIZES["Llama 2 7B"], "max_position_embeddings": 2048},
    "huggyllama/llama-13b": {**LLAMA_13B, "max_position_embeddings": 2048},
    "meta-llama/Llama-2-7b-hf": SIZES["Llama 2 7B"],
    "meta-llama/Llama-2-13b-hf": LLAMA_13B,
    "meta-llama/Llama-2-70b-hf": SIZES["Llama 2 70B"],
    "meta-llama/Meta-Llama-3-8B": {
        **LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
    },
    "meta-llama/Meta-Llama-3-70B": {
        **LLAMA_3,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "max_position_embeddings": 8192,
    },
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "openai-community/gpt2-medium": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1024,
        "n_layer": 24,
        "n_head": 16,
    },
    "openai-community/gpt2-large": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1280,
        "n_layer": 36,
        "n_head": 20,
    },
}
"""Sizes of decoders by name on the Hugging Face Hub; some of them must be requested there."""

ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
DEBERTA = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
ENCODERS = {
    "FacebookAI/roberta-base": {
        **ROBERTA,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "FacebookAI/roberta-large": {
        **ROBERTA,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "microsoft/deberta-v3-base": {
        **DEBERTA,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "microsoft/deberta-v2-xxlarge": {
        **DEBERTA,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
}
"""Sizes of encoders by name on the Hugging Face Hub."""
