"""PiSSA, Table 2: language models learn to follow instructions; full, LoRA, PiSSA (2404.02948).

    C=configs/pissa_nlg.py:model=llama_2_7b,folder=data
    python -m experiments.train --config=$C,task=metamath,file=metamath.json,method=pissa,seed=0 \
        --workdir=runs/pissa_nlg/llama_2_7b/pissa/metamath/0
    python -m experiments.table --table=pissa_nlg --results=runs/pissa_nlg

The paper trains on 100,000 examples each of MetaMathQA, of CodeFeedback and of WizardLM's evolved
instructions, and tests on GSM8K and MATH, HumanEval and MBPP, and MT-Bench. **These five tests are
not part of this project**: their numbers are only published, and never shown beside ours. Our
numbers are for 2,000 held-out examples of the same file: the loss per token, and the ROUGE-L of the
texts generated for 200 of them (the share of exact matches is in the record only).

`file` is JSON or JSONL in Alpaca's format, `[{"instruction": ..., "output": ...}, ...]`: rename the
data's own fields first (MetaMathQA's are `query` and `response`). An answer that has no room within
512 tokens is refused; the authors' script truncates it. Remove such examples, or set
`--config.data.max_length=`. `:model=smollm2`, the default, runs on a laptop; its numbers cannot be
compared with the paper's. Gemma's rows are only published: this project has no Gemma.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, common_tasks, common_texts

TASKS = {"metamath": "MetaMathQA", "codefeedback": "CodeFeedback", "wizardlm": "WizardLM"}
# Rank and alpha are from the authors' scripts; the scale is 1. LoRA's A has two initialisations.
# PiSSA uses the fast singular value decomposition with 16 iterations, as in the scripts.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "lora_gaussian": ("lora", {"rank": 128, "alpha": 128.0, "initialization": "gaussian"}),
    "lora": ("lora", {"rank": 128, "alpha": 128.0, "initialization": "kaiming_uniform"}),
    "pissa": ("pissa", {"rank": 128, "alpha": 128.0, "initialization": "pissa_niter_16"}),
}
SMALL_RANK = 16
"""The rank for SmolLM2, whose hidden size is 576."""
# All rows have the same learning rate, although 2e-5 is typical of full fine-tuning: LoRA's rows
# would probably gain from a larger one. For LoRA and PiSSA, base weights and adapters are in
# float32 as the paper says (the scripts have bfloat16); for full fine-tuning, weights are in
# bfloat16. Gradients of a batch are accumulated over 32 pieces, which does not change the result.
PAPER = {
    "batch_size": 128,
    "accumulate": 32,
    "epochs": 1,
    "learning_rate": 2e-5,
    "schedule": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_length": 512,
    "train": 100_000,
    "remat": "layers",
}
WRITTEN = {"scored": 200, "metrics": ("rouge_l", "exact_match"), "max_new_tokens": 512}

ARGUMENTS = common_texts.arguments(
    model=("smollm2", "llama_2_7b", "mistral_7b"),
    method=("pissa", "lora", "lora_gaussian", "full"),
    task=tuple(TASKS),
    file="",
)
TABLE = common_tasks.table(
    "PiSSA, Table 2: following instructions",
    published=("PiSSA", "Table 2"),
    columns=tuple(
        (f"{title} {heading}", task, metric)
        for task, title in TASKS.items()
        for heading, metric in (("loss", "token_loss"), ("ROUGE-L", "rouge_l"))
    ),
    printed=(
        ("GSM8K", "gsm8k", "accuracy"),
        ("MATH", "math", "accuracy"),
        ("HumanEval", "humaneval", "pass_at_1"),
        ("MBPP", "mbpp", "pass_at_1"),
        ("MT-Bench", "mt_bench", "score"),
    ),
    rows={
        "full": "full fine-tuning",
        "lora_gaussian": "LoRA, Gaussian A",
        "lora": "LoRA, Kaiming A",
        "pissa": "PiSSA",
    },
    scored_on="held-out examples",
    decimals=2,
    notes=("GSM8K, MATH, HumanEval, MBPP and MT-Bench are not evaluated here: published only.",),
)


def recipe(model: str, method: str) -> dict[str, Any]:
    """The hyperparameters of a run."""
    if model == "smollm2":
        rate = 2e-5 if method == "full" else 1e-4
        return common_texts.laptop(rate, validation=200)
    return {**PAPER, "dtype": "bfloat16" if method == "full" else "float32"}


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    model, method, task = choice["model"], choice["method"], choice["task"]
    small = model == "smollm2"
    variant, settings = VARIANTS[method]
    if small and settings:
        settings = {**settings, "rank": SMALL_RANK, "alpha": float(SMALL_RANK)}
    return common_texts.experiment(
        "pissa_nlg",
        choice,
        recipe(model, method),
        row=method,
        column=task,
        variant=common.variant(variant, **settings),
        targets=common_texts.SEVEN_LINEARS,
        task=task,
        source="alpaca",
        file=choice["file"],
        generate=WRITTEN | ({"scored": 50, "max_new_tokens": 128} if small else {}),
    )
