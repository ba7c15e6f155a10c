"""The model card of an export: what was trained on what, with which scores, and how to load it.

It says what the run's record, config and data say. What they lack is left out.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import variants
from configs.common_tasks import STORAGES
from configs.settings import RunConfig, TextConfig, free_names
from experiments.analysis import labels
from experiments.catalogue import source
from experiments.command_names import shown
from experiments.exports.card_metadata import metadata
from experiments.exports.card_origin import command, is_made
from experiments.exports.card_score_table import score_section
from experiments.exports.card_scores import scores
from experiments.exports.format import Format, Use
from experiments.exports.markdown import block, code, table
from experiments.exports.place import UNKNOWN, Place, on_card, published, text_on_card
from experiments.runs.finished_run import FinishedRun
from experiments.setup.from_config import kind_of_optimizer, make_start
from lora_jax.training.optimizers import OF_SOME
from lora_jax.transform.summary import summary

CONFIG = "run.json"
"""The file of an export with the run's config, as `experiments.train --config` takes it."""
LICENCE = (
    "The record names no licence. Those of the base model and of the data apply: read them before "
    "you share this."
)
LIMITS = (
    "Nothing was measured but the scores above: other data, other languages, other uses and "
    "harmful outputs were not looked at."
)


@dataclasses.dataclass(frozen=True)
class Export:
    """What a card says of the export, beside the run."""

    chosen: Format
    place: Place
    """Where its readers have the files."""
    command: str
    """The command that has made it."""
    use: Use | None = None
    """How the files are loaded there."""
    said: Sequence[str] = ()
    """What the format tells the user of the files."""


def model_card(run: FinishedRun, export: Export) -> str:
    """The text of an export's README.md.

    Raises:
      ValueError: the run's predictions are damaged, or give other scores than its record.
    """
    config, found = run.config, scores(run)
    base = Path(published(run) or config.model.name).name
    method, storage = labels.method(config.variant.name), config.quantize.storage
    on = f" on {STORAGES[storage]}" if storage != "none" else ""
    title = f"{base}, {method}{on}"
    if not is_made(run):
        title += f", {config.data.name}"
    parts = (
        f"---\n{metadata(run, export.chosen, found, title).to_yaml()}\n---",
        f"# {title}",
        f"{export.chosen.holds}, from a run of lora-jax."
        + (f" It was not trained there: {text_on_card(run.record.note)}." if is_made(run) else ""),
        *_what(run),
        *_loading(run, export),
        *_data(run),
        *score_section(run, found),
        *([] if is_made(run) else _training(run)),
        *_commands(run, export),
        *_environment(run),
        "## Limits",
        LIMITS,
    )
    return "\n\n".join(parts) + "\n"


def _what(run: FinishedRun) -> Iterable[str]:
    config, record = run.config, run.record
    kind = variants.find(config.variant.name)
    paper, idea, base = source.paper(kind), source.idea(kind), published(run)
    method = labels.method(config.variant.name)
    own = code(Path(config.model.name).name)
    known = f"[{base}](https://huggingface.co/{base})" if base else own
    named = f" ({own} in the config)" if base != config.model.name else ""
    trained = f"{record.parameters_trained:,} of {record.parameters_total:,} parameters"
    if record.parameters_adapters is not None:
        trained += f", of which {record.parameters_adapters:,} are in adapters"
    rows = [
        ("Base model", known + (named if base else "")),
        ("Method", f"[{method}]({paper})" if paper else method),
        ("Its idea", idea),
        ("The adapter has" if is_made(run) else "Trained", trained),
    ]
    if config.quantize.storage != "none":
        patterns = ", ".join(map(code, config.quantize.patterns))
        stored = f"stored as {STORAGES[config.quantize.storage]}: {patterns}"
        when = "as it was scored" if is_made(run) else "in training"
        rows.append((f"Frozen weights {when}", stored))
    if config.start_from:
        rows.append(
            ("Started from", f"the adapter of {code(on_card(make_start(config.start_from)[0]))}")
        )
    return [table(("", ""), rows)]


def _loading(run: FinishedRun, export: Export) -> Iterable[str]:
    if export.use or export.said:
        yield "## Use"
    if export.use:
        words = [] if "/" in export.place.files else [f"# {export.place.files}: this folder"]
        if re.search(rf"\b{UNKNOWN}\b(?!\.gguf)", export.use.code):
            words.append(f"# {UNKNOWN}: the base model, {Path(run.config.model.name).name}")
        yield block("\n".join([*words, export.use.code]), export.use.language)
    if export.said:
        yield "The export said:"
        yield block("\n".join(export.said))


def _data(run: FinishedRun) -> Iterable[str]:
    config, task = run.config, run.experiment.texts.task
    parts = {"validation": task.validation, **task.extra}
    if not is_made(run):
        parts = {"train": task.train, **parts}
    rows = [(name, code(part.name), f"{len(part):,}") for name, part in parts.items()]
    yield "## Data"
    named = f"{code(config.data.name)} from the source {code(config.data.source)}."
    drawn = f" Its train part was drawn with seed {config.data.draw}." if config.data.train else ""
    if is_made(run):
        yield (
            f"The adapter was scored on the task {named} Which data it was trained on, the run "
            "does not say."
        )
    else:
        yield f"Task {named}{drawn}"
    yield table(("part", "data set", "examples"), rows)
    names = getattr(task, "label_names", None)
    if names:
        yield f"Classes, in the order of their numbers: {', '.join(map(code, names))}."
    yield LICENCE


def _training(run: FinishedRun) -> Iterable[str]:
    config, record = run.config, run.record
    yield "## Training"
    yield (
        f"{record.steps:,} steps of {_optimizer(config)} in {record.seconds:,.0f} s, seed "
        f"{record.seed}. These weights were trained:"
    )
    rows = summary(run.trainable, run.frozen).rows
    heads = ("weight", "use", "shape", "method", "rank", "trained")
    yield table(heads, [(code(path), *rest, f"{count:,}") for path, *rest, count in rows])
    rules = [(p, v) for p, v in run.experiment.adapted.rules if v is not None and v.adapts]
    if rules:
        yield "Settings of the method, by the pattern of the weights:"
        yield table(("weights", "settings"), [(code(str(p)), code(repr(v))) for p, v in rules])
    yield "Hyperparameters:"
    yield table(("setting", "value"), _settings(config))


def _optimizer(config: RunConfig) -> str:
    """The optimiser, and whether an average of the weights was saved."""
    averages = " (the moving average of the weights was saved)" if config.train.ema else ""
    return kind_of_optimizer(config).title + averages


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    """The settings that decide the result, without those of sections that are described apart."""
    sections: dict[str, Any] = {"optimizer": config.optimizer, "train": config.train}
    kind = kind_of_optimizer(config)
    if isinstance(config, TextConfig) and config.generate.scored:
        sections["generate"] = config.generate
    rows = [("model.dtype", config.model.dtype), ("data.max_length", str(config.data.max_length))]
    for section, values in sections.items():
        for field in dataclasses.fields(values):
            name, value = f"{section}.{field.name}", getattr(values, field.name)
            unread = section == "optimizer" and field.name in OF_SOME - {*kind.reads}
            if value is not None and not unread and name not in free_names(type(config)):
                rows.append((name, str(value)))
    return [(code(name), code(value)) for name, value in rows]


def _commands(run: FinishedRun, export: Export) -> Iterable[str]:
    yield "## Commands"
    if is_made(run):
        if line := command(run.folder, CONFIG):
            yield (
                "The adapter was made by this command of lora-jax, with the same base model and "
                "data:"
            )
            yield block(line, "bash")
    else:
        needs = "this file and the same data and base model"
        if run.config.start_from:
            started = code(on_card(make_start(run.config.start_from)[0]))
            needs = (
                "this file, the same data and base model, and the adapter that it started from "
                f"({started}; `start_from` in the file says where it was)"
            )
        yield (
            f"{code(CONFIG)} has every setting of the run. With {needs}, this command of "
            "lora-jax makes the run again:"
        )
        yield block(f"{shown('train')} --config={CONFIG} --workdir=runs/again", "bash")
    yield "These files were made by:"
    yield block(export.command, "bash")


def _environment(run: FinishedRun) -> Iterable[str]:
    record = run.record
    rows = [(name, version) for name, version in record.versions.items() if version is not None]
    device = record.device
    rows.append(("device", f"{device.get('count')} x {device.get('kind')}"))
    if record.git:
        changed = ", with changes" if record.git["dirty"] else ""
        rows.append(("commit of lora-jax", f"{record.git['commit']}{changed}"))
    digests = {"config": record.config_digest, "data": record.data_digest}
    digests |= {"weights of the base model": record.weights_digest}
    rows += [(f"digest of {name}", digest) for name, digest in digests.items() if digest]
    yield "## Environment"
    yield table(("", ""), [(name, code(str(value))) for name, value in rows])
