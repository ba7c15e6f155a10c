"""Writes tests/fixtures/deberta_*: what torch's DeBERTa v2 and v3 compute, in float64.

Needs torch and transformers:

    PYTHONPATH=. python tests/support/make_fixtures/deberta.py

Weights are not stored: both sides draw them from a seed and the tensor's name (bert.py). The upper
half of the file needs numpy only, and the tests use it.
"""

import json
from pathlib import Path

import numpy as np

try:
    from make_fixtures.bert import random_inputs, random_tensors, torch_outputs
except ImportError:  # as a script
    from bert import random_inputs, random_tensors, torch_outputs

FIXTURES = Path(__file__).parents[2] / "fixtures"


def _v2(**changes):
    """As deberta-v2-xxlarge, tiny: a convolution, buckets, shared projections."""
    return _v3(**{"conv_kernel_size": 3, "conv_act": "gelu", **changes})


def _v3(**changes):
    """As deberta-v3-base, tiny."""
    return {
        "model_type": "deberta-v2",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
        "type_vocab_size": 0,
        "pad_token_id": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "max_relative_positions": -1,
        "position_biased_input": False,
        **changes,
    }


# name -> (config.json, number of labels, tokens)
CASES = {
    "v3": (_v3(), 2, 9),
    "v3_long": (_v3(num_hidden_layers=1), 3, 40),
    "v3_one_token": (_v3(pooler_hidden_act="tanh"), 2, 1),
    "v2": (_v2(), 2, 9),
    "v2_groups": (_v2(conv_kernel_size=5, conv_act="tanh", conv_groups=4, hidden_act="relu"), 1, 7),
    "no_buckets": (_v3(position_buckets=-1, max_relative_positions=6, norm_rel_ebd="none"), 2, 11),
    "own_projections": (_v3(share_att_key=False, num_attention_heads=4), 2, 9),
    "c2p": (_v3(share_att_key=False, pos_att_type=["c2p"]), 2, 8),
    "p2c": (_v3(pos_att_type=["p2c"], position_buckets=4), 2, 13),
    "absolute": (
        _v3(relative_attention=False, position_biased_input=True, type_vocab_size=2),
        4,
        9,
    ),
    "everything": (
        _v2(
            embedding_size=10,
            position_biased_input=True,
            type_vocab_size=3,
            max_relative_positions=12,
            num_hidden_layers=3,
            layer_norm_eps=1e-3,
        ),
        3,
        15,
    ),
}


def inputs_of(name):
    """ids, mask, types of a case."""
    config, _, tokens = CASES[name]
    return deberta_inputs(config, list(CASES).index(name), tokens)


def deberta_inputs(config, seed, tokens):
    types = max(config["type_vocab_size"], 1)
    if tokens == 1:
        return tuple(x[:, :1] for x in random_inputs({**config, "type_vocab_size": types}, seed))
    return random_inputs({**config, "type_vocab_size": types}, seed, tokens=tokens)


def torch_deberta(config, num_labels):
    """transformers' sequence classifier for a config.json, in float64, dropout off.

    transformers takes the root of the heads' width in float32 even there: here it is exact.
    """
    import torch
    import transformers
    from transformers.models.deberta_v2 import modeling_deberta_v2

    def root(query, scale_factor):
        return torch.sqrt(torch.tensor(query.size(-1) * scale_factor, dtype=query.dtype))

    modeling_deberta_v2.scaled_size_sqrt = root
    settings = {k: v for k, v in config.items() if k != "model_type"}
    configuration = transformers.DebertaV2Config(**settings, num_labels=num_labels)
    return transformers.DebertaV2ForSequenceClassification(configuration).double().eval()


def torch_random_deberta(config, num_labels, seed):
    """A torch classifier with `random_tensors`, and the shapes of its tensors."""
    import torch

    model = torch_deberta(config, num_labels)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = random_tensors(shapes, seed)
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    return model, shapes


def main():
    shapes, arrays = {}, {}
    for seed, (name, (config, num_labels, _)) in enumerate(CASES.items()):
        model, shapes[name] = torch_random_deberta(config, num_labels, seed)
        hidden, logits = torch_outputs(model, *inputs_of(name))
        arrays |= {f"{name}/hidden": hidden, f"{name}/logits": logits}
    (FIXTURES / "deberta_shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    np.savez_compressed(FIXTURES / "deberta_random.npz", **arrays)


if __name__ == "__main__":
    main()
