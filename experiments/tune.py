r"""A study with one budget for all: learning rates on held-out examples, then seeds on the rest.

    python -m experiments.tune --study=all_methods --workdir=runs/all_methods/cola \
        --argument=task=cola,source=tsv,folder=glue_data

Of each row, every learning rate is trained once and scored on training examples that are held out
for it; the best then trains with every seed, and only these runs see the development set. Runs that
differ in numbers alone are one program, as in `experiments.sweep`. The same command goes on where
it was stopped; `--rows` takes a part, so that several can work side by side.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments import cli
from experiments.runs.audit_flag import wanted
from experiments.sweeps import jobs
from experiments.sweeps.grouping import groups
from lora_jax.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.records import run_record
from lora_jax.suggest import nearest

_STUDY = flags.DEFINE_string("study", None, "A config with a STUDY, such as all_methods.")
_ARGUMENT = flags.DEFINE_string("argument", "", "What its configs are given after the colon.")
_ROWS = flags.DEFINE_list("rows", [], "Only these rows; all of them by default.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all runs.")


def tune() -> None:
    known = [p.stem for p in sorted(Path("configs").glob("*.py")) if "\nSTUDY" in p.read_text()]
    if (name := str(_STUDY.value)) not in known:
        raise ValueError(f"unknown study '{name}'; nearest: {nearest(name, known)}")
    module = importlib.import_module(f"configs.{name}")
    rates = module.STUDY["rates"]
    _check_argument(_ARGUMENT.value)
    for row in _ROWS.value:
        if row not in rates:
            raise ValueError(f"unknown row '{row}'; nearest: {nearest(row, rates)}")
    for row in _ROWS.value or rates:

        def config(row: str = row, **changes: Any) -> dict[str, Any]:
            argument = ",".join(filter(None, (_ARGUMENT.value, f"row={row}")))
            made = module.get_config(argument)
            made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
            return made.to_dict()

        study(config, module.STUDY, row, Path(str(_WORKDIR.value)), wanted())


def _check_argument(text: str) -> None:
    """Raise a ValueError where an argument says what the study says of every run.

    It would be as if nothing had been said.
    """
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key == "row":
            raise ValueError(f"--argument={text}: rows are tuned one by one; give --rows={value}")
        if key == "seed":
            raise ValueError(f"--argument={text}: the study's STUDY says which seeds are trained")


def study(
    config: Any, plan: Mapping[str, Any], row: str, workdir: Path, audit: bool = True
) -> None:
    """All runs of one row: its learning rates, then the best one's seeds.

    Args:
      config: `config(**changes)` is the row's config.
      plan: `rates` by row, `held_out`, `tuning_seed` and `seeds`.
      audit: whether compiled programs are compared with NumPy's before they train.
    """
    held = {"data__validation": plan["held_out"], "seed": plan["tuning_seed"]}
    rates = plan["rates"][row]
    configs = {f"{rate:g}": config(optimizer__learning_rate=rate, **held) for rate in rates}
    tried = dict(zip(rates, _train(configs, workdir / "tuning" / row, audit), strict=True))
    best = best_rate(tried)
    seeds = plan["seeds"]
    configs = {str(seed): config(optimizer__learning_rate=best, seed=seed) for seed in seeds}
    _train(configs, workdir / "runs" / row, audit)


def _train(
    configs: Mapping[str, dict[str, Any]], folder: Path, audit: bool
) -> list[run_record.Record]:
    """Train runs, each in a folder of its name; those that share a program as one."""
    names, console = list(configs), Console()
    ended: dict[str, run_record.Record] = {}
    for numbers in groups(list(configs.values())):
        mine = [names[number] for number in numbers]
        folders = [folder / name for name in mine]
        results = jobs.train([configs[name] for name in mine], folders, mine, jobs.How(audit=audit))
        for name, result in zip(mine, results, strict=True):
            if isinstance(result, Exception):
                raise result
            ended[name] = result
            console.print(f"{folder / name}: {_said(result)}")
    return [ended[name] for name in names]


def best_rate(tried: Mapping[float, run_record.Record]) -> float:
    """The learning rate of the best score, the smaller one of equal ones.

    Raises:
      ValueError: no run was completed.
    """
    scores = {
        rate: score
        for rate, record in sorted(tried.items())
        if record.status == "completed"
        and (score := record.metrics_last[record.metric]) is not None
    }
    if not scores:
        raise ValueError("no learning rate trained to the end: try smaller ones")
    low = next(iter(tried.values())).metric in LOWER_IS_BETTER
    return (min if low else max)(scores, key=scores.__getitem__)


def _said(record: run_record.Record) -> str:
    if record.status != "completed":
        return f"{record.status}, {record.note}"
    return f"{record.metric} {record.metrics_last[record.metric]:.4f} in {record.seconds:.0f} s"


if __name__ == "__main__":
    flags.mark_flags_as_required(["study", "workdir"])
    cli.main(tune)
