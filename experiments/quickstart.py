"""The quickstart: train a head alone, then LoRA, and classify three sentences with both.

    python -m experiments.quickstart --workdir=runs/quickstart
    python -m experiments.quickstart --documents=README.md  # rewrites the table between its markers

Each run is in a folder of its own below --workdir.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from configs import quickstart
from experiments import cli
from experiments.runs.audit_flag import wanted
from experiments.runs.interruption import between_programs
from experiments.runs.quickstart_table import Trained, fill, show
from experiments.runs.run import run
from experiments.setup.config import parse
from experiments.setup.devices import announce
from experiments.setup.experiment import build
from lora_jax.adapters.adapter_file import load_adapter
from lora_jax.files import marked_documents

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "The folder for the runs.")
_MODEL = flags.DEFINE_string(
    "model",
    "minilm",
    "The model: minilm, a local folder, or org/name of a BERT on the Hugging Face Hub.",
)
_SIZE = flags.DEFINE_enum(
    "size",
    "full",
    ["full", "smoke"],
    "How long the runs are: full takes minutes; smoke takes seconds.",
)
_DOCUMENTS = flags.DEFINE_list("documents", [], marked_documents.HELP)


def compare() -> None:
    shipped = _MODEL.value == _MODEL.default and _SIZE.value == _SIZE.default
    if _DOCUMENTS.value and not shipped:
        raise ValueError(
            "--documents writes the table of the default --model and --size: leave both out"
        )
    marked_documents.files(_DOCUMENTS.value)  # a wrong name is said before minutes of training
    announce()
    with between_programs() as begin:
        head = _train("head_only")
        begin()
        lora = _train("lora")
    console = Console()
    rows = show(head, lora, console)
    for what, file in (("record: ", "record.json"), ("adapter:", "adapter.safetensors")):
        console.print(f"{what} {_folder('lora') / file}", markup=False, soft_wrap=True)
    if _DOCUMENTS.value:
        marked_documents.update(_DOCUMENTS.value, lambda text: fill(text, rows))


def _train(name: str) -> Trained:
    chosen = quickstart.get_config(f"variant={name},size={_SIZE.value}")
    chosen.update_from_flattened_dict({"model.name": _MODEL.value})
    config = parse(chosen.to_dict())
    record = run(config, _folder(name), label=name, say=print, audit=wanted())
    if record.status != "completed":
        raise ValueError(f"{name}: {record.status}, {record.note}")
    experiment = build(config)
    trainable, _, _ = load_adapter(_folder(name), experiment.trainable, experiment.frozen)
    return Trained(record, experiment, trainable)


def _folder(name: str) -> Path:
    """The folder of a run; other models and sizes have their own, so no run replaces another."""
    other = [flag.value for flag in (_MODEL, _SIZE) if flag.value != flag.default]
    return Path(_WORKDIR.value) / "-".join([name, *other]).replace("/", "-")


if __name__ == "__main__":
    cli.main(compare)
