"""A case's model and batch in transformers and torch."""

import os
from typing import Any

from experiments.benchmarks import models
from experiments.benchmarks.cases import CLASSES, Case
from lora_jax.models.published.location import locate

NAMES = {
    "query": r"(attention\.self\.query|self_attn\.q_proj)",
    "key": r"(attention\.self\.key|self_attn\.k_proj)",
    "value": r"(attention\.self\.value|self_attn\.v_proj)",
    "output": r"(attention\.output\.dense|self_attn\.o_proj)",
    "gate": r"mlp\.gate_proj",
    "up": r"(intermediate\.dense|mlp\.up_proj)",
    "down": r"(output\.dense|mlp\.down_proj)",
}
"""Patterns of the names inside a block in transformers, by ours."""
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def load(case: Case) -> Any:
    """The model in float32, with as many threads as there are cores."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if case.products == "bfloat16":
        torch.set_float32_matmul_precision("medium")
    is_encoder = models.family(case) == "bert"
    auto: Any = AutoModelForSequenceClassification if is_encoder else AutoModelForCausalLM
    own: dict[str, Any] = {"num_labels": CLASSES, **NO_DROPOUT} if is_encoder else {}
    if case.model == "smollm2":
        path = locate("smollm2")
        return auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    if case.model in models.PUBLISHED:
        return auto.from_pretrained(locate(case.model), **own)
    return auto.from_config(AutoConfig.for_model(**models.content(case), **own))


def inputs(case: Case) -> dict[str, Any]:
    """The arguments of a call that gives the loss of a case's batch."""
    import torch  # pyright: ignore[reportMissingImports]

    batch = models.batch(case)
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "labels": "input_ids"}
    if models.family(case) == "bert":
        names |= {"token_type_ids": "token_type_ids", "labels": "label"}
    return {name: torch.tensor(batch[ours], dtype=torch.long) for name, ours in names.items()}
