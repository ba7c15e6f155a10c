"""A forward pass of this project's in which each row has an adapter of its own, out of a bank."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
from experiments.benchmarks import models
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compilations, compiled
from experiments.benchmarks.contenders.ours_step import adapt, inputs
from lora_jax.models.parts.separate_layers import separate, stacked


def make(case: Case) -> Made:
    adapted, trainable, frozen, _ = adapt(case)
    adapter = trainable, frozen
    bank = filled(adapted.forward, adapter, case)
    arrays, batch = separate(bank, case.unroll), inputs(models.batch(case))

    @jax.jit
    def forward(arrays: Any, slots: Any, *batch: Any) -> Any:
        return stacked(arrays).apply(slots, *batch)

    slots = jnp.asarray(slots_of(case))
    program, facts = compiled(forward, arrays, slots, *batch)
    with compilations() as counted:
        jax.block_until_ready(program(arrays, jnp.asarray(np.roll(slots_of(case), 1)), *batch))
    facts = {**facts, "compilations": float(len(counted))}
    return Made(lambda: jax.block_until_ready(program(arrays, slots, *batch)), facts)


def slots_of(case: Case) -> np.ndarray:
    """The slot of each row, (rows,): as many different ones as there can be, spread evenly."""
    return 1 + (np.arange(case.rows) * max(case.adapters // case.rows, 1)) % case.adapters


def filled(forward: Any, adapter: Any, case: Case) -> lj.Bank:
    """A bank with the same adapter in every slot, where each is held apart."""
    bank = lj.Bank(forward, adapter, capacity=case.adapters, max_rank=case.rank)
    for slot in range(1, case.adapters + 1):
        bank = bank.put(slot, adapter, donate=True)
    return bank
