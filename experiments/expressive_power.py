"""How far LoRA of each rank reaches: the networks of arXiv 2310.17513, and its printed medians.

    python -m experiments.expressive_power --out=runs/expressive_power

A frozen network of random weights is adapted to a shallower one. The default is the paper's grid:
16 ranks, three rates and four decays, five seeds, biases fixed and trained, the frozen network
random and pretrained, 3,840 runs of 5,000 steps. All runs of a seed are one compiled program. What
has ended is kept in --out, and the command goes on after it. At the end it prints the paper's
medians beside the same runs here.
"""

import csv
import dataclasses
import io
import itertools
import time
from pathlib import Path
from typing import Any, Literal

from absl import flags

from experiments import cli
from experiments.approximation import medians
from experiments.approximation.networks import Setting
from experiments.approximation.training import Grid, train
from experiments.setup.devices import announce
from lora_jax.files.atomic import write_atomically
from lora_jax.messages import require_known

_OUT = flags.DEFINE_string("out", None, "The folder for the losses of all runs.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds, from 0.", lower_bound=1)
_RANKS = flags.DEFINE_list(
    "ranks", None, "The ranks of the adapters. The default is 1 to the width."
)
_STEPS = flags.DEFINE_integer("steps", 5000, "Training steps of each run.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 16, "The width of all layers.", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_depth", 1, "Layers of the target network.", lower_bound=1)
_FROZEN = flags.DEFINE_integer("frozen_depth", 2, "Layers of the frozen network.", lower_bound=1)
_ACTIVATION: flags.FlagHolder[Any] = flags.DEFINE_enum(
    "activation", "relu", ["relu", "linear"], "Linear networks have no biases."
)
_NETWORKS = flags.DEFINE_list(
    "networks", ["random", "pretrained"], "The frozen network: random, pretrained or both."
)
_BIASES = flags.DEFINE_list("biases", ["fixed", "trained"], "Biases: fixed, trained or both.")


def expressive_power() -> None:
    out = cli.out_folder(str(_OUT.value))
    for flag, known in ((_NETWORKS, ("random", "pretrained")), (_BIASES, ("fixed", "trained"))):
        for each in flag.value:
            require_known(each, known, f"--{flag.name}={each}: unknown")
    activation: Literal["relu", "linear"] = _ACTIVATION.value  # as the flag allows
    linear = activation == "linear"
    base = Setting(
        width=_WIDTH.value,
        target_depth=_TARGET.value,
        frozen_depth=_FROZEN.value,
        activation=activation,
        biases=not linear,
    )
    ranks = cli.integers("ranks", _RANKS.value, "1,8,16") or range(1, base.width + 1)
    if bad := [rank for rank in ranks if not 1 <= rank <= base.width]:
        raise ValueError(f"--ranks={bad[0]}: expected 1 to the width, {base.width}")
    grid = Grid(ranks=tuple(ranks), steps=_STEPS.value)
    announce()
    biases = ["fixed"] if linear else _BIASES.value
    settings = {
        (network, each): dataclasses.replace(base, pretrained=network == "pretrained")
        for network, each in itertools.product(_NETWORKS.value, biases)
    }
    units = list(itertools.product(settings, range(_SEEDS.value)))
    found: dict[tuple[str, str], dict[int, medians.Cells]] = {each: {} for each in settings}
    for count, ((network, bias), seed) in enumerate(units, 1):
        setting, start = settings[network, bias], time.monotonic()
        path = out / f"{network}_{bias}_{seed}.csv"
        cells = _read(path, _described(setting, grid)) if path.exists() else None
        if cells is None:
            cells = _train(path, setting, grid, seed, bias == "trained")
            said = f"{len(cells)} runs in {time.monotonic() - start:.0f} s"
            print(f"{count} of {len(units)}: {network}, biases {bias}, seed {seed}: {said}")
        found[network, bias][seed] = cells
    for (network, bias), cells in found.items():
        name = f"Test loss, frozen network {network}, biases {bias}, {_SEEDS.value} seeds"
        print(f"\n{medians.over_seeds(cells, name).to_markdown()}")
    if base == Setting() and _STEPS.value == 5000:
        fixed = found.get(("random", "fixed"), {})
        print(f"\n{medians.beside_printed(fixed.get).to_markdown()}")


def _described(setting: Setting, grid: Grid) -> str:
    """What the runs of a file are; its first line, which a later start compares."""
    return f"# {setting} {grid}"


def _train(path: Path, setting: Setting, grid: Grid, seed: int, biases: bool) -> medians.Cells:
    before, after = train(setting, grid, seed, biases)
    text = io.StringIO(f"{_described(setting, grid)}\n")
    text.seek(0, io.SEEK_END)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "rate", "decay", "before", "after"))
    for cell, *losses in zip(grid.cells(), before, after, strict=True):
        writer.writerow((*cell, *losses))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
    return dict(zip(grid.cells(), after, strict=True))


def _read(path: Path, described: str) -> medians.Cells:
    """The losses of a file.

    Raises:
      ValueError: it is of other settings.
    """
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    if first != described:
        raise ValueError(f"{path}: it has runs of other settings; give another --out")
    rows = csv.DictReader(io.StringIO(rest))
    return {
        (int(row["rank"]), float(row["rate"]), float(row["decay"])): float(row["after"])
        for row in rows
    }


if __name__ == "__main__":
    flags.mark_flags_as_required(["out"])
    cli.main(expressive_power)
