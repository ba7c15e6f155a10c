"""Published sizes of decoders, in the form of their config.json; no weights are needed."""

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
"""Sizes by name on the Hugging Face Hub; access to some of the models must be requested."""
