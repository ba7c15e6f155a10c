"""KerasHub: a model's `stateless_call`, with a list of arrays as parameters."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras_hub

from zoo.family import Family

SIZES = {"vocabulary_size": 50, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32}


def bert() -> Family:
    model = keras_hub.models.BertBackbone(**SIZES, num_heads=2, max_sequence_length=8)
    inputs = {"token_ids": _ids(), "segment_ids": 0 * _ids(), "padding_mask": 0 * _ids() + 1}
    return _stateless(model, inputs, "sequence_output")


def gpt2() -> Family:
    model = keras_hub.models.GPT2Backbone(**SIZES, num_heads=2, max_sequence_length=8)
    return _stateless(model, {"token_ids": _ids(), "padding_mask": 0 * _ids() + 1})


def mixtral() -> Family:
    heads = {"num_query_heads": 2, "num_key_value_heads": 1}
    model = keras_hub.models.MixtralBackbone(**SIZES, **heads, num_experts=4)
    return _stateless(model, {"token_ids": _ids(), "padding_mask": 0 * _ids() + 1})


def gemma() -> Family:
    heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model = keras_hub.models.GemmaBackbone(**SIZES, **heads)
    return _stateless(model, {"token_ids": _ids(), "padding_mask": 0 * _ids() + 1})


def vit() -> Family:
    model = keras_hub.models.ViTBackbone(
        (16, 16, 3), patch_size=(8, 8), num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    return _stateless(model, jax.random.normal(jax.random.key(0), (2, 16, 16, 3)))


def _ids():
    return jax.random.randint(jax.random.key(0), (2, 6), 0, 50)


def _stateless(model, inputs, output=None) -> Family:
    params = {variable.path: variable.value for variable in model.trainable_variables}
    names = [variable.path for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]

    def forward(params, inputs):
        outputs, _ = model.stateless_call([params[each] for each in names], others, inputs)
        return outputs if output is None else outputs[output]

    return Family(forward, params, (inputs,))
