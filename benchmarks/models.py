"""The models that are timed, published ones and random ones of given shapes, and their batches.

A random model has the shapes of a config.json, which both transformers and this project read.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax as lj
from benchmarks.cases import CLASSES, Case
from experiments.planning.model_sizes import LLAMA_3, ON_THE_HUB
from lora_jax.data.tokenised_task import token_cross_entropy
from lora_jax.models.families.bert import BertClassifier, BertConfig
from lora_jax.models.families.llama import Llama, LlamaConfig
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.published.load import (
    load_classifier,
    load_decoder,
    read_decoder_config,
    read_encoder_config,
)
from lora_jax.models.published.location import locate
from lora_jax.training.step import Loss, cross_entropy

PUBLISHED = {"minilm": "bert", "smollm2": "llama"}
"""The family of each published model, by its name for `locate`."""

RANDOM: dict[str, dict[str, Any]] = {
    "tiny bert": {
        "model_type": "bert",
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "tiny llama": {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    },
    "small llama": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 768,
        "max_position_embeddings": 4096,
    },
    "Llama 1B": {  # of Llama 3.2, as the next one
        **LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Llama 3B": {
        **LLAMA_3,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Llama 8B": ON_THE_HUB["meta-llama/Meta-Llama-3-8B"],
}
"""The content of each random model's config.json."""

TARGETS = {
    "query, value": ("query", "value"),
    "query": ("query",),
    "attention": ("query", "key", "value", "output"),
    "all": ("query", "key", "value", "output", "gate", "up", "down"),
}
"""The linear layers of a block, by our names; an encoder has no `gate`."""


def family(case: Case) -> str:
    """`bert`, a classifier, or `llama`, a language model."""
    return PUBLISHED.get(case.model) or RANDOM[case.model]["model_type"]


def content(case: Case) -> dict[str, Any]:
    """The content of a random model's config.json."""
    own = RANDOM[case.model]
    return own | {"num_hidden_layers": case.layers or own["num_hidden_layers"]}


def config(case: Case) -> BertConfig | LlamaConfig:
    """The sizes of a case's model."""
    if case.model == "minilm":
        return read_encoder_config(locate(case.model))  # type: ignore[return-value]
    if case.model == "smollm2":
        return read_decoder_config(locate(case.model))  # type: ignore[return-value]
    kind = BertConfig if family(case) == "bert" else LlamaConfig
    return kind.from_json(content(case))


def pattern(case: Case) -> str:
    """The pattern of the kernels that a case adapts."""
    return f"layers/.*({'|'.join(TARGETS[case.targets])})/kernel"


def load(case: Case) -> nnx.Module:
    """A case's model, with published or random weights."""
    given: dict[str, Any] = {"remat": case.remat, "unroll": case.unroll}
    given["param_dtype"] = jnp.dtype(case.dtype)
    if case.model == "minilm":
        key, labels = jax.random.key(0), CLASSES
        return load_classifier(locate("minilm"), num_labels=labels, pool="cls", key=key, **given)[0]
    if case.model == "smollm2":
        return load_decoder(locate("smollm2"), **given)
    build: Any = functools.partial(Llama, config(case))
    if family(case) == "bert":
        build = functools.partial(BertClassifier, config(case), CLASSES)
    graph = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **given)))[0]
    # Jitted, as one layer's weights after the other would be held twice.
    return nnx.merge(graph, jax.jit(lambda: nnx.state(build(rngs=nnx.Rngs(0), **given)))())


def forward(model: nnx.Module, case: Case) -> tuple[Callable[..., Any], nnx.State, Loss]:
    """A model as a function of parameters, ids, mask and types; its parameters; and the loss."""
    if family(case) == "bert":
        return *lj.from_nnx(model), cross_entropy
    call, params = completion_likelihood(model, case.tokens)  # type: ignore[arg-type]
    return call, params, token_cross_entropy


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def batch(case: Case) -> dict[str, np.ndarray]:
    """Random tokens without padding; a language model learns all of them but the first."""
    rng, shape = np.random.default_rng(0), (case.rows, case.tokens)
    decodes = family(case) == "llama"
    return {
        "input_ids": rng.integers(3, config(case).vocab_size, shape).astype(np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.full(shape, int(decodes), np.int32),
        "label": rng.integers(0, CLASSES, case.rows).astype(np.int32),
        "weight": np.full(case.rows, case.tokens - 1 if decodes else 1, np.float32),
    }


def slots_of(case: Case) -> np.ndarray:
    """The slot of each row, (rows,): the case's, or as many as there can be, spread evenly."""
    if case.slot is not None:
        return np.full(case.rows, case.slot)
    return 1 + (np.arange(case.rows) * max(case.adapters // case.rows, 1)) % case.adapters
