"""Texts of many clients, each with an adapter of its own out of a bank, by continuous batching.

A client asks for one text, and a lane that has no client is computed all the same.
"""

import numpy as np

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compilations
from experiments.benchmarks.contenders.ours_mixed import filled, slots_of
from experiments.benchmarks.contenders.ours_step import adapt
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.models.parts.kv_cache import cached_step


def make(case: Case) -> Made:
    forward, _ = cached_step(models.load(case))  # type: ignore[arg-type]
    _, *adapter, _ = adapt(case)
    bank = filled(forward, tuple(adapter), case)
    scheduler = Scheduler(bank, lanes=case.lanes, capacity=case.tokens + case.written)
    prompts = np.asarray(models.batch(case)["input_ids"])

    def work() -> int:
        for slot, prompt in zip(slots_of(case).tolist(), prompts, strict=True):
            scheduler.submit(Request(slot, prompt.tolist(), max_new_tokens=case.written))
        tokens = 0
        while scheduler.waiting or scheduler.active:
            tokens += sum(event.token is not None for event in scheduler.step())
        return tokens

    work()
    with compilations() as counted:
        tokens = work()
    return Made(work, {"tokens": float(tokens), "compilations": float(len(counted))})
