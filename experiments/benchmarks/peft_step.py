"""A training step of PEFT and torch, for `experiments.benchmarks.contender`."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import cases
from experiments.benchmarks.cases import Case
from lora_jax.models.published.location import locate

TARGETS = {
    "query, value": ["query", "value"],
    "all six": r".*layer\.\d+\..*(query|key|value|dense)",
}


def make(case: Case, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that takes a step and returns its loss."""
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoModelForSequenceClassification,
    )

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        locate("minilm"), num_labels=cases.CLASSES, **none
    )
    common: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": TARGETS[case.targets]}
    if case.method == "adalora":
        names = {"target_r": "target_rank", "tinit": "t_init", "tfinal": "t_final"}
        budget = {name: cases.BUDGET[ours] for name, ours in names.items()}
        config: Any = peft.AdaLoraConfig(
            init_r=cases.RANK, deltaT=1, total_step=cases.STEPS, **budget, **common
        )
        model = peft.get_peft_model(model, config)
    elif case.method != "full":
        config = peft.LoraConfig(r=cases.RANK, use_dora=case.method == "dora", **common)
        model = peft.get_peft_model(model, config)
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "labels": "label"}
    names["token_type_ids"] = "token_type_ids"
    inputs = {name: torch.tensor(batch[ours], dtype=torch.long) for name, ours in names.items()}
    number = 0

    def take() -> float:
        nonlocal number
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if case.method == "adalora":
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad()
        number += 1
        return float(loss)

    return take
