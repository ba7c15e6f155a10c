"""NaN and infinities in data, weights and the loss: each is named before a result is written."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from experiments.runs import predictions, run
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.soaking import inputs
from experiments.soaking.damage import hidden
from lora_jax.records import run_record


@dataclasses.dataclass(frozen=True)
class Planted:
    """A number that is not finite, and what became of it."""

    where: str
    number: str
    outcome: str
    """`refused`: an error before anything trains. `diverged`: a record that says so, without scores
    that look like results. `unnoticed`: anything else."""
    said: str


def soak(given: inputs.Inputs, scratch: Path) -> list[Planted]:
    """Plant NaN and both infinities in each place, and train."""
    found = []
    for where, plant in PLACES.items():
        for number in (np.nan, np.inf, -np.inf):
            folder = scratch / "planted"
            shutil.copytree(given.folder, folder)
            for line in plant(inputs.Inputs(folder), number):
                found.append(_try(where, number, line, folder / "run"))
            shutil.rmtree(folder)
    return found


def _try(where: str, number: float, line: list[str], workdir: Path) -> Planted:
    named = str(number)
    try:
        with hidden():
            config = parse(read_config(line).to_dict())
            record = run.run(config, workdir, audit=False)
    except (ValueError, OSError) as error:
        left = [path.name for path in workdir.glob("*.npz")] + [
            path.name for path in workdir.glob("adapter*")
        ]
        clear = "\n" not in str(error) and not left
        return Planted(where, named, "refused" if clear else "unnoticed", str(error))
    plain = record.status == "diverged" and bool(record.note)
    plain &= not predictions.read(workdir) and run_record.read(workdir) is not None
    plain &= not (workdir / "adapter.safetensors").exists()
    return Planted(where, named, "diverged" if plain else "unnoticed", record.note)


def _label(given: inputs.Inputs, number: float) -> Iterator[list[str]]:
    """A target of a regression."""
    lines = given.train.read_text(encoding="utf-8").splitlines()
    rows = [f"{line.rpartition(chr(9))[0]}\t{place / 8}" for place, line in enumerate(lines[1:])]
    rows[5] = f"{rows[5].rpartition(chr(9))[0]}\t{number}"
    given.train.write_text("\n".join([lines[0], *rows]) + "\n", encoding="utf-8")
    yield [*given.config, "--config.data.validation=8"]


def _weight(given: inputs.Inputs, number: float) -> Iterator[list[str]]:
    """An entry of the base model's weights."""
    path = given.model / "model.safetensors"
    tensors = {name: x.copy() for name, x in safetensors.numpy.load_file(path).items()}
    name = next(each for each in tensors if each.endswith("query.weight"))
    tensors[name].flat[0] = number
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    yield given.config


def _adapter(given: inputs.Inputs, number: float) -> Iterator[list[str]]:
    """An entry of the adapter that a run starts from, whose checksums are those of its content."""
    import lora_jax as lj
    from experiments.setup.experiment import build

    with hidden():
        made = build(parse(read_config(given.config).to_dict()))
    adapters: dict[str, Any] = made.trainable["adapters"]
    path = next(iter(adapters))
    factors = {name: np.array(factor) for name, factor in adapters[path].items()}
    next(iter(factors.values())).flat[0] = number
    spoiled = {**made.trainable, "adapters": {**adapters, path: factors}}
    lj.save_adapter(given.folder / "start", spoiled, made.frozen)
    yield [*given.config, f"--config.start_from={given.folder / 'start'}"]


def _loss(given: inputs.Inputs, number: float) -> Iterator[list[str]]:
    """A learning rate that makes the loss grow beyond all numbers; the number itself is refused."""
    rate = "1e38" if number > 0 else str(number)
    yield [
        *given.config,
        f"--config.optimizer.learning_rate={rate}",
        "--config.optimizer.warmup_ratio=0.0",
    ]


PLACES: dict[str, Callable[[inputs.Inputs, float], Iterator[list[str]]]] = {
    "target in the data": _label,
    "weight of the base model": _weight,
    "adapter to start from": _adapter,
    "learning rate and loss": _loss,
}
"""Where numbers are planted."""


def wrong(found: list[Planted]) -> list[str]:
    """One line for each number that nobody noticed."""
    unnoticed = [each for each in found if each.outcome == "unnoticed"]
    return [f"{each.where}, {each.number}: unnoticed, {each.said}" for each in unnoticed]
