r"""Run a study: tune learning rates on held-out examples, then train the best with every seed.

    python -m experiments.tune --study=all_methods --workdir=runs/all_methods/cola \
        --argument=task=cola,source=tsv,folder=glue_data

For each row of the study, every learning rate that the method's file suggests is trained once and
scored on held-out training examples. The best rate is then trained with every seed; only these runs
see the development set.
Runs that differ only in numbers share one program, as in `experiments.sweep`. Give the same command
again to continue a stopped study. `--rows` runs some rows only, so that several commands can run
side by side; it takes any row that the config does.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

import variants
from configs.settings import RunConfig
from experiments import cli
from experiments.runs.audit_flag import wanted
from experiments.setup.config import parse
from experiments.sweeps import jobs
from experiments.sweeps.grouping import groups
from lora_jax.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.records import run_record
from lora_jax.suggest import require_known

_STUDY = flags.DEFINE_string(
    "study", None, "The name of a config file that has a STUDY, for example all_methods."
)
_ARGUMENT = flags.DEFINE_string(
    "argument", "", "The argument of the config file: what follows the colon in --config."
)
_ROWS = flags.DEFINE_list(
    "rows", [], "The rows to run, such as lora,my_package.my_variant. The default is the study's."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for all runs.")


def tune() -> None:
    known = [p.stem for p in sorted(Path("configs").glob("*.py")) if "\nSTUDY" in p.read_text()]
    name = str(_STUDY.value)
    require_known(name, known, f"unknown study '{name}'")
    module = importlib.import_module(f"configs.{name}")
    _check_argument(_ARGUMENT.value)
    planned = []
    for row in _ROWS.value or module.STUDY["rows"]:

        def config(row: str = row, **changes: Any) -> RunConfig:
            argument = ",".join(filter(None, (_ARGUMENT.value, f"row={row}")))
            made = module.get_config(argument)
            made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
            return parse(made.to_dict())

        config()  # what is wrong with a row is said before any is trained
        planned.append((row, config))
    for row, config in planned:
        study(config, module.STUDY, row, Path(str(_WORKDIR.value)), wanted())


def _check_argument(text: str) -> None:
    """Raise a ValueError if an argument sets `row` or `seed`.

    The study sets both for every run, so the argument would be ignored.
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
    """Train all runs of one row: its learning rates, then every seed with the best rate.

    Args:
      config: `config(**changes)` returns the row's settings with these changes.
      plan: the study's `held_out`, `tuning_seed` and `seeds`.
      audit: whether to compare compiled programs with NumPy's before they train.
    """
    held = {"data__validation": plan["held_out"], "seed": plan["tuning_seed"]}
    rates = variants.find(config().variant.name).suggested.tried
    configs = {f"{rate:g}": config(optimizer__learning_rate=rate, **held) for rate in rates}
    tried = dict(zip(rates, _train(configs, workdir / "tuning" / row, audit), strict=True))
    best = best_rate(tried)
    seeds = plan["seeds"]
    configs = {str(seed): config(optimizer__learning_rate=best, seed=seed) for seed in seeds}
    _train(configs, workdir / "runs" / row, audit)


def _train(configs: Mapping[str, RunConfig], folder: Path, audit: bool) -> list[run_record.Record]:
    """Train runs, each in a folder of its name; runs that share a program train together."""
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
    """The learning rate with the best score; if several are equal, the smallest.

    Raises:
      ValueError: no run has completed with a score.
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
