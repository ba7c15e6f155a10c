"""A forward pass of PEFT's in which each row has an adapter of its own (`adapter_names`)."""

from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders import torch_model
from experiments.benchmarks.contenders.made import Made
from experiments.benchmarks.contenders.ours_mixed import slots_of
from experiments.benchmarks.contenders.peft_step import adapt, config


def make(case: Case) -> Made:
    import torch  # pyright: ignore[reportMissingImports]

    model = adapt(torch_model.load(case), case).eval()
    names = {1: "default"} | {number: str(number) for number in range(2, case.adapters + 1)}
    for number in range(2, case.adapters + 1):
        model.add_adapter(names[number], config(case))
    inputs, rows = torch_model.inputs(case), [names[slot] for slot in slots_of(case)]

    def work() -> float:
        with torch.inference_mode():
            return model(**inputs, adapter_names=rows).loss.item()

    return Made(work)
