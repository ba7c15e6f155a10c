"""A step of several trials of this project's, at once in one program over one base."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compiled
from experiments.benchmarks.contenders.ours_step import adapt, optimizer, predict_of, settings_of
from experiments.setup.forward_pass import separated
from lora_jax.training.step import TrainState, make_step
from lora_jax.training.trial_program import make_program


def make(case: Case) -> Made:
    adapted, trainable, frozen, loss = adapt(case)
    step = make_step(adapted, predict_of(adapted, case), loss)

    def traced(hyper: Any, state: TrainState, frozen: Any, batch: Any) -> Any:
        return step(optimizer(hyper["rate"]), 1.0, state, frozen, batch)

    rates = [{"rate": jnp.float32(1e-4 * (1 + number))} for number in range(case.trials)]
    halves = separated(settings_of(case), *[frozen] * case.trials)
    program = make_program("vmap", traced, halves, rates)
    key, batches = jax.random.key(0), [models.batch(case)] * case.trials
    first = TrainState.create(adapted, optimizer(), trainable, frozen, key)
    states = program.start([first] * case.trials)
    # The program itself would compile once more: its function is called here as it calls it.
    function, facts = compiled(program.jitted, *program.arguments(states, batches))

    def work() -> None:
        nonlocal states
        states, _ = jax.block_until_ready(function(*program.arguments(states, batches)))

    return Made(work, facts)
