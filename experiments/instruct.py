r"""Teach a small language model to answer questions, with full fine-tuning, LoRA and QLoRA.

    python -m experiments.instruct --workdir=runs/instruct

Runs `configs/instruct.py` once for each of --methods, each in its own folder below --workdir. Then
prints the scores before and after training, the number of parameters, and the model's answers to
three questions. Give the same command again to continue a stopped run.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.text import Text

from configs import instruct
from experiments import cli
from experiments.analysis import parameters
from experiments.runs.audit_flag import wanted
from experiments.runs.interruption import between_programs
from experiments.runs.run import run
from experiments.setup.config import parse
from experiments.setup.devices import announce
from lora_jax.records import run_record
from lora_jax.table import Table

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/instruct", "The folder for the runs, one folder for each method."
)
_METHODS = flags.DEFINE_list(
    "methods", ["full", "lora", "qlora"], "The methods to train, as configs/instruct.py names them."
)
_SIZE = flags.DEFINE_enum(
    "size",
    "full",
    ["full", "smoke"],
    "How long the runs are: full is whole; smoke takes a few steps.",
)


def teach() -> None:
    configs = {
        method: parse(instruct.get_config(f"method={method},size={_SIZE.value}").to_dict())
        for method in _METHODS.value
    }
    announce()
    found = {}
    with between_programs() as begin:
        for method, config in configs.items():
            begin()
            found[method] = run(config, _folder(method), method, say=print, audit=wanted())
            if found[method].status != "completed":
                raise ValueError(f"{method}: {found[method].status}, {found[method].note}")
    console = Console()
    console.print(table(found).to_rich())
    for line in samples(found):
        console.print(line)
    console.print(f"records and adapters: {_WORKDIR.value}", markup=False, soft_wrap=True)


def _folder(method: str) -> Path:
    """The folder of a run; a smoke run has a folder of its own."""
    name = method if _SIZE.value == "full" else f"{method}-{_SIZE.value}"
    return Path(str(_WORKDIR.value)) / name


def table(found: dict[str, run_record.Record]) -> Table:
    """A table with a row for each method: scores before and after, parameters, seconds.

    Scores are on held-out questions.
    """
    rows = []
    for method, record in found.items():
        before, after = record.metrics_first or {}, record.metrics_last
        row = (
            method,
            f"{before['accuracy']:.1%} to {after['accuracy']:.1%}",
            f"{before['eval_loss']:.3f} to {after['eval_loss']:.3f}",
            parameters.text(parameters.counts([record])),
            f"{record.seconds:.0f}",
        )
        rows.append(row)
    return Table(("method", "accuracy", "loss", "parameters", "seconds"), rows)


def samples(found: dict[str, run_record.Record]) -> list[Text]:
    """Lines with the model's answers to some questions, before training and after each method."""
    lines = []
    rows = zip(*(record.samples or [] for record in found.values()), strict=True)
    for row in rows:
        first = row[0]
        lines += [
            Text(first["prompt"].strip(), style="italic"),
            Text(f"    expected: {' or '.join(first['expected'])}"),
            Text(f"    before: {first['before']}"),
            *(Text(f"    {m}: {each['after']}") for m, each in zip(found, row, strict=True)),
        ]
    return lines


if __name__ == "__main__":
    cli.main(teach)
