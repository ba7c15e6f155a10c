"""Greedy generation of transformers, with its cache, from prompts of random tokens."""

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders import torch_model
from experiments.benchmarks.contenders.made import Made


def make(case: Case) -> Made:
    import torch  # pyright: ignore[reportMissingImports]

    model = torch_model.load(case).eval()
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
