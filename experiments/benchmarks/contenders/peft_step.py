"""A training step of PEFT, transformers and torch."""

from typing import Any

from experiments.benchmarks import models
from experiments.benchmarks.cases import ALPHA, BUDGET, STEPS, Case
from experiments.benchmarks.contenders import torch_model
from experiments.benchmarks.contenders.made import Made


def make(case: Case) -> Made:
    import torch  # pyright: ignore[reportMissingImports]

    model = adapt(torch_model.load(case), case).train()
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

    inputs = torch_model.inputs(case)
    # A step on one short row, which learns nothing: it makes the moments, and what torch keeps.
    step({name: each[:1, :8] if each.ndim == 2 else each[:1] for name, each in inputs.items()})
    for each in optimizer.param_groups:
        each["lr"] = 1e-3
    return Made(lambda: step(inputs))


def adapt(model: Any, case: Case) -> Any:
    """The model as PEFT adapts it; the model itself for method `full`."""
    import peft  # pyright: ignore[reportMissingImports]

    return model if case.method == "full" else peft.get_peft_model(model, config(case))


def config(case: Case) -> Any:
    """PEFT's config of a case's method."""
    import peft  # pyright: ignore[reportMissingImports]

    names = "|".join(torch_model.NAMES[name] for name in models.TARGETS[case.targets])
    task = "SEQ_CLS" if models.family(case) == "bert" else "CAUSAL_LM"
    common: dict[str, Any] = {"task_type": task, "target_modules": rf".*layers?\.\d+\.({names})"}
    if case.method == "adalora":
        own = {"target_r": "target_rank", "tinit": "t_init", "tfinal": "t_final"}
        own = {name: BUDGET[ours] for name, ours in own.items()}
        return peft.AdaLoraConfig(
            init_r=case.rank, deltaT=BUDGET["delta_t"], total_step=STEPS, **own, **common
        )
    return peft.LoraConfig(r=case.rank, lora_alpha=ALPHA, use_dora=case.method == "dora", **common)
