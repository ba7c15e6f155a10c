"""Estimate what all runs of a table cost on a device: the cells of its config, and the total."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs.settings import RunConfig
from experiments.planning.run_cost import RunCost, StepCost, step_cost, steps_of
from experiments.planning.topologies import Accelerator
from experiments.setup.config import parse
from experiments.setup.config_files import module_of
from lora_jax.messages import count, require_known
from lora_jax.table import Table

STAND_INS = ("minilm", "smollm2")
"""Models of laptops, which a table has beside those of its paper."""
HEADS = ("model", "row", "column", "seeds", "steps", "TFLOPs a step", "GB", "hours a run")
FORMATS = ("text", "csv")


@dataclasses.dataclass(frozen=True)
class CellCost:
    """A cell of a table, which has a run for each seed."""

    model: str
    row: str
    column: str
    seeds: int
    run: RunCost


def cell_configs(name: str, model: str | None = None) -> Iterator[RunConfig]:
    """The config of each cell of a table, in the order of the config's own arguments.

    An argument that takes any text has its default, but for the rows of a study.

    Args:
      model: the only one; without it, all but the stand-ins, unless the table has no others.

    Raises:
      ValueError: an unknown table, or a model that the table does not have.
    """
    module = _module(name)
    lists = {k: v for k, v in _arguments(module).items() if isinstance(v, tuple)}
    for key in ("size", "source"):  # of which any gives the same runs
        lists[key] = lists[key][:1] if key in lists else ()
    lists = {key: values for key, values in lists.items() if values}
    if model is not None:
        require_known(model, lists.get("model", ()), f"--model={model}: no model of {name}")
        lists["model"] = (model,)
    elif papers := tuple(each for each in lists.get("model", ()) if each not in STAND_INS):
        lists["model"] = papers
    seen = set()
    for values in itertools.product(*lists.values()):
        argument = ",".join(f"{key}={value}" for key, value in zip(lists, values, strict=True))
        config = _config(module, argument)
        if config is None:  # not in this combination
            continue
        parsed = parse(config.to_dict())
        place = (parsed.study.model, parsed.study.row, parsed.study.column)
        if place not in seen:
            seen.add(place)
            yield parsed


def _config(module: Any, argument: str) -> ConfigDict | None:
    """The config of an argument; None if it has no such run.

    Some runs start from another one's adapter. Which one does not change what a run costs.
    """
    for start in ("", ",start_from=-") if "start_from" in module.ARGUMENTS else ("",):
        try:
            return module.get_config(argument + start)
        except ValueError:
            continue
    return None


def _arguments(module: Any) -> dict[str, Any]:
    """A config's arguments; `row` has the rows of its study where it takes any text itself."""
    arguments = dict(module.ARGUMENTS)
    if hasattr(module, "STUDY") and isinstance(arguments.get("row"), str):
        arguments["row"] = tuple(module.STUDY["rows"])
    return arguments


def _module(name: str) -> ModuleType:
    return module_of(name, ("TABLE", "ARGUMENTS", "get_config"), "table")[1]


def left_out(name: str) -> str:
    """Which runs of a table its cells leave out, in sentences; empty if there are none."""
    module = _module(name)
    said = ["Runs that choose learning rates are left out."] * hasattr(module, "STUDY")
    arguments = _arguments(module)
    for key in ("row", "variant"):
        if isinstance(default := arguments.get(key), str):
            said.append(f"Only {key}={default} is counted, of any {key} that the config takes.")
    return " ".join(said)


def table_cost(name: str, model: str | None = None, tokens: int | None = None) -> list[CellCost]:
    """The cost of each cell of a table.

    Args:
      model: only this model of the table.
      tokens: of each row; by default those of the longest that a config allows.
    """
    configs = list(cell_configs(name, model))
    seeds, steps = int(_module(name).TABLE["seeds"]), dict[str, StepCost]()
    found = []
    for config in configs:
        key = repr(_of_a_step(config))
        if key not in steps:
            steps[key] = step_cost(config, tokens)
        study, run = config.study, RunCost(steps[key], steps_of(config))
        found.append(CellCost(study.model, study.row, study.column, seeds, run))
    return found


def _of_a_step(config: RunConfig) -> Mapping[str, Any]:
    """The settings that a step's cost depends on: cells that agree in them are traced once."""
    train = config.train
    return {
        "model": config.model,
        "variant": config.variant,
        "targets": config.targets,
        "also_train": config.also_train,
        "quantize": config.quantize,
        "tokens": getattr(config.data, "max_length", None),
        "rows": (train.batch_size, train.accumulate),
        "optimizer": (train.optimizer, train.ema is None),
    }


def text(
    cells: list[CellCost], name: str, device: Accelerator, efficiency: float, without: str = ""
) -> str:
    """The costs as a table, with the total of all cells and seeds, and what they leave out.

    Args:
      without: sentences on runs that are not cells (`left_out`).
    """
    rows = [list(map(_shown, row)) for row in table(cells, device, efficiency).rows]
    known = [(each, each.run.hours(device, efficiency)) for each in cells]
    total = sum(each.seeds * hours for each, hours in known if hours is not None)
    unknown = sum(hours is None for _, hours in known)
    runs = sum(each.seeds for each, hours in known if hours is not None)
    said = [
        Table(HEADS, rows).to_text(),
        "",
        f"About {_shown(float(total))} hours on one {name} for "
        f"{'' if unknown or without else 'all '}{count(runs, 'run')}.",
        "This is an estimate by a roofline: the slower of a step's products and its traffic with",
        f"memory, each at {efficiency:.0%} of the device's peak. "
        "Evaluations, compilation and data are left out.",
    ]
    if without:
        said.append(without)
    if unknown:
        said.append(f"Not in the total: {unknown} cells whose data are of unknown size.")
    if tight := [each for each in cells if each.run.step.memory > device.memory]:
        first = tight[0]
        said.append(
            f"Too large for {device.memory / 1e9:,.0f} GB: {len(tight)} cells, such as "
            f"{first.model}, {first.row}, {first.column}; see --config and --topology."
        )
    return "\n".join(said) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value or "?"


def table(cells: list[CellCost], device: Accelerator, efficiency: float) -> Table:
    """The costs, a row for each cell; what is unknown is None."""
    rows = [
        [
            each.model,
            each.row,
            each.column,
            each.seeds,
            each.run.steps,
            each.run.step.flops / 1e12,
            each.run.step.memory / 1e9,
            each.run.hours(device, efficiency),
        ]
        for each in cells
    ]
    return Table(HEADS, rows)
