"""A forward pass of this project's: of the base, with the adapter merged into it, or beside it."""

from typing import Any

import jax

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compiled
from experiments.benchmarks.contenders.ours_step import adapt
from lora_jax.models.parts.separate_layers import separate, stacked


def make(case: Case) -> Made:
    batch = models.batch(case)
    inputs = [batch[name] for name in models.INPUTS]
    if case.weights == "base":
        call, weights, _ = models.forward(models.load(case), case)
        given: Any = (weights,)
    else:
        adapted, *given, _ = adapt(case)
        call = adapted.apply
        if case.weights == "merged":
            call, given = adapted.forward, (adapted.merge(*given),)
    weights = separate(tuple(given), case.unroll)

    @jax.jit
    def forward(weights: Any, *inputs: Any) -> Any:
        return call(*stacked(weights), *inputs)

    program, facts = compiled(forward, weights, *inputs)
    return Made(lambda: jax.block_until_ready(program(weights, *inputs)), facts)
