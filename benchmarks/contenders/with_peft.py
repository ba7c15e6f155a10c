"""What PEFT, transformers and torch do: a training step, texts, and mixed batches."""

import os
from typing import Any

from benchmarks import models
from benchmarks.cases import ALPHA, BUDGET, CLASSES, STEPS, Case
from benchmarks.contenders.made import Made
from lora_jax.models.published.location import locate


def step_work(case: Case) -> Made:
    """Training steps."""
    import torch  # pyright: ignore[reportMissingImports]

    model = adapt(load(case), case).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.01)
    number = 0

    def step(inputs: dict[str, Any]) -> float:
        nonlocal number
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if case.method == "adalora":
            model.base_model.update_and_allocate(number)
        optimizer.zero_grad()
        number += 1
        return loss.item()

    batch = torch_inputs(case)
    # A step on one short row, which learns nothing: it makes the moments, and what torch keeps.
    step({name: each[:1, :8] if each.ndim == 2 else each[:1] for name, each in batch.items()})
    for each in optimizer.param_groups:
        each["lr"] = 1e-3
    return Made(lambda: step(batch))


def adapt(model: Any, case: Case) -> Any:
    """The model as PEFT adapts it; the model itself for method `full`."""
    import peft  # pyright: ignore[reportMissingImports]

    return model if case.method == "full" else peft.get_peft_model(model, config(case))


def config(case: Case) -> Any:
    """PEFT's config of a case's method."""
    import peft  # pyright: ignore[reportMissingImports]

    names = "|".join(NAMES[name] for name in models.TARGETS[case.targets])
    task = "SEQ_CLS" if models.family(case) == "bert" else "CAUSAL_LM"
    common: dict[str, Any] = {"task_type": task, "target_modules": rf".*layers?\.\d+\.({names})"}
    if case.method == "adalora":
        own = {"target_r": "target_rank", "tinit": "t_init", "tfinal": "t_final"}
        own = {name: BUDGET[ours] for name, ours in own.items()}
        return peft.AdaLoraConfig(
            init_r=case.rank, deltaT=BUDGET["delta_t"], total_step=STEPS, **own, **common
        )
    return peft.LoraConfig(r=case.rank, lora_alpha=ALPHA, use_dora=case.method == "dora", **common)


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


def torch_inputs(case: Case) -> dict[str, Any]:
    """The arguments of a call that gives the loss of a case's batch."""
    import torch  # pyright: ignore[reportMissingImports]

    batch = models.batch(case)
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "labels": "input_ids"}
    if models.family(case) == "bert":
        names |= {"token_type_ids": "token_type_ids", "labels": "label"}
    return {name: torch.tensor(batch[ours], dtype=torch.long) for name, ours in names.items()}


def generation_work(case: Case) -> Made:
    """Greedy generation of transformers, with its cache."""
    import torch  # pyright: ignore[reportMissingImports]

    model = load(case).eval()
    prompts = torch.tensor(models.batch(case)["input_ids"], dtype=torch.long)
    mask = torch.ones_like(prompts)
    # No token ends a text: all are as long as ours.
    length = {"max_new_tokens": case.written, "min_new_tokens": case.written}

    def work() -> None:
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=mask, do_sample=False, num_beams=1, pad_token_id=0, **length
            )

    return Made(work, {"tokens": case.rows * case.written})


def mixed_work(case: Case) -> Made:
    """A forward pass in which each row has an adapter of its own (`adapter_names`)."""
    import torch  # pyright: ignore[reportMissingImports]

    model = adapt(load(case), case).eval()
    names = {1: "default"} | {number: str(number) for number in range(2, case.adapters + 1)}
    for number in range(2, case.adapters + 1):
        model.add_adapter(names[number], config(case))
    batch, rows = torch_inputs(case), [names[slot] for slot in models.slots_of(case)]

    def work() -> float:
        with torch.inference_mode():
            return model(**batch, adapter_names=rows).loss.item()

    return Made(work)
