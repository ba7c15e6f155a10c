"""An adapter put into a slot of a full bank in place of another, from memory or from its file."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import jax

import lora_jax as lj
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compilations
from experiments.benchmarks.contenders.ours_mixed import filled
from experiments.benchmarks.contenders.ours_step import adapt


def make(case: Case) -> Made:
    adapted, trainable, frozen, _ = adapt(case)
    adapter = trainable, frozen
    bank, numbers = filled(adapted.forward, adapter, case), itertools.count()
    home = tempfile.TemporaryDirectory()
    path = lj.save_adapter(Path(home.name) / "adapter.npz", *adapter)
    held, digests = bank.prepare(adapter), lj.base_digests(frozen)

    def read() -> Any:
        assert home.name  # the folder stays as long as the work
        return lj.load_adapter(path, *adapter, digests=digests)[:2]

    def work() -> None:
        nonlocal bank
        slot = 1 + next(numbers) % case.adapters
        bank = bank.put(slot, read() if case.from_disk else held, donate=True)
        jax.block_until_ready(bank)

    work()
    with compilations() as counted:
        work()
    return Made(work, {"file_bytes": path.stat().st_size, "compilations": float(len(counted))})
