"""Greedy generation of this project's, with its cache, from prompts of random tokens."""

import dataclasses
from typing import Any

import jax

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made
from experiments.benchmarks.contenders.ours_step import adapt
from lora_jax.generation.generate import generate
from lora_jax.models.parts.kv_cache import cached_step


def make(case: Case) -> Made:
    step, params = cached_step(models.load(case))  # type: ignore[arg-type]
    call, given = step, (params,)
    if case.weights == "unmerged":
        adapted, *given, _ = adapt(case)
        call = dataclasses.replace(adapted, forward=step).apply  # kept: a new one compiles again
    prompts: Any = models.batch(case)["input_ids"]
    settings = {"max_new_tokens": case.written, "eos_ids": None, "pad_id": 0}

    def work() -> None:
        jax.block_until_ready(generate(call, given, prompts, **settings))

    return Made(work, {"tokens": case.rows * case.written})
