"""The model card of an export: what was trained on what, with which scores, and how to load it.

It says what the run's record, config and data say. What they lack is left out. The YAML at its
beginning is what the Hugging Face Hub reads.
"""

import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

import variants
from configs.common_tasks import STORAGES
from configs.settings import (
    ClassifierConfig,
    OwnConfig,
    RunConfig,
    TextConfig,
    TokenSettings,
    free_names,
)
from experiments.analysis import labels
from experiments.analysis.bootstrap import RESAMPLES
from experiments.analysis.recorded_runs import held_out
from experiments.catalogue import catalogue
from experiments.command_names import shown
from experiments.exports.base_and_head import UNKNOWN, Place, on_card, published, text_on_card
from experiments.exports.card_scores import Score, scores
from experiments.exports.formats import Format, Use
from experiments.imports import combined_run, imported_run
from experiments.runs import predictions
from experiments.runs.finished_run import FinishedRun
from experiments.setup.from_config import kind_of_optimizer, make_start
from lora_jax.data import SPECS
from lora_jax.data.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.files.json_text import read_object
from lora_jax.records import seal
from lora_jax.table import Table
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

HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rouge_l": "rouge",
    "eval_loss": "loss",
    "token_loss": "loss",
}
"""The Hub's names of metrics, where they differ from ours."""
FEW = 100
"""Below this many examples, the percentile bootstrap is rough."""


@dataclasses.dataclass(frozen=True)
class Export:
    """What a card says of the export, beside the run."""

    chosen: Format
    place: Place
    """Where its readers have the files."""
    command: str
    """The command that has made it."""
    use: Use
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
        f"---\n{_metadata(run, export.chosen, found, title).to_yaml()}\n---",
        f"# {title}",
        f"{export.chosen.holds}, from a run of lora-jax."
        + (f" It was not trained there: {text_on_card(run.record.note)}." if is_made(run) else ""),
        *_what(run),
        *_loading(run, export),
        *_data(run),
        *_scores(run, found),
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
    paper, idea, base = catalogue.paper(kind), catalogue.idea(kind), published(run)
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
    yield "## Use"
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


def _scores(run: FinishedRun, found: Sequence[Score]) -> Iterable[str]:
    """Paragraphs on the scores of a run; none if its record has no scores."""
    if not found:
        return
    record = run.record
    best = run.config.train.select == "best" and not is_made(run)
    of_texts = " Scores of generated texts with a signature below are from 0 to 100."
    chosen = f"step {record.steps}, the last one."
    if best:
        chosen = f"step {record.best_step}, chosen by the rule {code(record.rule)}."
    whose = f"Scores of the run, whose adapter is that of {chosen}"
    if is_made(run):
        whose = "Scores of the adapter as it is here; the run has not trained it."
    yield "## Scores"
    yield (
        f"{whose} They were computed by lora-jax in the run, and not anew with these "
        "files. Accuracy, F1 and correlations are fractions of 1."
        f"{of_texts if record.signatures else ''}"
    )
    heads = ("score", "part", "value", "95% interval", "examples")
    lines = [_row(run, each) for each in found]
    saved = (run.folder / predictions.NAME).exists()
    known = [saved or any(cells) for cells in zip(*lines, strict=True)]
    heads, *lines = [tuple(itertools.compress(line, known)) for line in (heads, *lines)]
    yield table(heads, lines)
    if drawn := [each.examples or 0 for each in found if each.low is not None]:
        rough = f" With fewer than {FEW} examples it is rough." if min(drawn) < FEW else ""
        yield (
            "The interval is that of the percentile bootstrap over the examples of the part "
            f"({RESAMPLES:,} resamples of the predictions that the run has saved). It covers which "
            "examples the model is scored on. It does not cover seeds, nor the choice of training "
            f"data.{rough}"
        )
    elif not saved:
        yield (
            "The scores have no intervals, as the run has saved no predictions to draw examples "
            "from again."
        )
    if best:
        yield (
            "The step was chosen by the validation part itself, so that its scores there are "
            "somewhat too good."
        )
    if record.signatures:
        yield "How scores of generated texts were computed:"
        rows = [(code(name), code(said)) for name, said in record.signatures.items()]
        yield table(("score", "signature"), rows)


def _row(run: FinishedRun, score: Score) -> tuple[str, ...]:
    interval = "" if score.low is None else f"{score.low:.4g} to {score.high:.4g}"
    value, part = f"{score.value:.4g}", score.part or "several"
    name = f"**{code(score.name)}**" if score.name == run.record.metric else code(score.name)
    return name, code(part), value, interval, f"{score.examples:,}" if score.examples else ""


def _training(run: FinishedRun) -> Iterable[str]:
    config, record = run.config, run.record
    average = " (the moving average of the weights was saved)" if config.train.ema else ""
    yield "## Training"
    yield (
        f"{record.steps:,} steps of {kind_of_optimizer(config.train).title}{average} in "
        f"{record.seconds:,.0f} s, seed {record.seed}. These weights were trained:"
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


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    """The settings that decide the result, without those of sections that are described apart."""
    sections: dict[str, Any] = {"optimizer": config.optimizer, "train": config.train}
    kind = kind_of_optimizer(config.train)
    if isinstance(config, TextConfig) and config.generate.scored:
        sections["generate"] = config.generate
    rows = [("model.dtype", config.model.dtype)]
    if isinstance(config.data, TokenSettings):
        rows.append(("data.max_length", str(config.data.max_length)))
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
        if line := origin_command(run.folder, CONFIG):
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


def _metadata(
    run: FinishedRun, chosen: Format, found: Sequence[Score], title: str
) -> ModelCardData:
    """The metadata of a run's card; what the record does not say is left out.

    Args:
      found: the scores of the run.
      title: the name of the model.
    """
    config, base = run.config, published(run)
    stored = config.quantize.storage
    tags = ["lora-jax", config.variant.name.rpartition(".")[2], *([stored] * (stored != "none"))]
    main = [each for each in found if each.metric not in LOWER_IS_BETTER and each.part]
    return ModelCardData(
        base_model=base,
        base_model_relation=base and chosen.relation,
        library_name=None if isinstance(config, OwnConfig) else chosen.library or None,
        pipeline_tag=_task_type(config),
        tags=tags,
        datasets=None if is_made(run) else _data_sets(config),  # those of training
        metrics=list(dict.fromkeys(map(_hub_metric, main))) or None,
        model_name=title,
        # Of what was not trained here, the head may be a new one, which the scores do not show.
        eval_results=[_result(run, each) for each in found if each.part and not is_made(run)]
        or None,
    )


def _task_type(config: RunConfig) -> str:
    """The Hub's name of the task."""
    if isinstance(config, OwnConfig):
        return "other" if config.data.source == "npz" else "image-classification"
    is_classifier = isinstance(config, ClassifierConfig)
    return "text-classification" if is_classifier else "text-generation"


def _data_sets(config: RunConfig) -> list[str] | None:
    """The Hub's name of the data, of tasks that have the same name there; files are anyone's."""
    if config.data.source == "demo":  # else it is generated
        return None if config.data.name in SPECS else [config.data.name]
    if config.data.source != "files" and config.data.name in SPECS:
        return [config.data.name.partition("/")[0]]
    return None


def _result(run: FinishedRun, score: Score) -> EvalResult:
    config, task = run.config, run.experiment.texts.task
    known = SPECS.get(config.data.name) if config.data.source != "files" else None
    splits = {part.name: part.split or None for part in known.parts} if known else {}
    family, _, own = config.data.name.partition("/") if known else (config.data.name, "", "")
    parts = {"validation": task.validation, **task.extra}
    return EvalResult(
        task_type=_task_type(config),
        dataset_type=family,
        dataset_config=own or None,
        dataset_name=parts[str(score.part)].name,
        dataset_split=None if held_out(config) else splits.get(str(score.part)),
        metric_type=_hub_metric(score),
        metric_name=score.name,
        metric_value=score.value,
    )


def _hub_metric(score: Score) -> str:
    return HUB_METRICS.get(score.metric, score.metric)


def is_made(run: FinishedRun) -> bool:
    """Whether the adapter is an imported or combined one, which the run has not trained."""
    return run.record.steps == 0


def origin_command(folder: Path, config: str) -> str | None:
    """The command that has made the adapter; None if the run's folder does not say how.

    Args:
      folder: the run's.
      config: the file of the run's config, as the command is to name it.

    Raises:
      ValueError: the file on the adapter's origin is damaged.
    """
    out = on_card(str(folder.absolute()))
    for name, line in ((imported_run.FILE, _imported), (combined_run.FILE, _combined)):
        if (path := folder / name).is_file():
            content = read_object(path)
            try:
                said, found = seal.opened(content)
                seal.require_unchanged(said, found)  # of an earlier version, it has none
                module, given = line(said, config)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged: it lacks {error}") from error
            flags = [
                f"--{flag}={value}" for flag, value in given.items() if value not in (None, "")
            ]
            return f"{shown(module)} {shlex.join([*flags, f'--out={out}'])}"
    return None


def _imported(said: dict[str, Any], config: str) -> tuple[str, dict[str, Any]]:
    source, commit, enabled = on_card(said["source"]), said["commit"], said.get("enable_lora")
    of_file = not (commit or "adapter_config.json" in said["sha256"])
    return "import_adapter", {
        "from": f"{source.partition('@')[0]}@{commit}" if commit else source,
        "alpha": said["adapter_config"].get("lora_alpha") if of_file else None,
        "enable_lora": ",".join(str(each).lower() for each in enabled or ()),
        "config": config,
    }


def _combined(said: dict[str, Any], config: str) -> tuple[str, dict[str, Any]]:
    return "combine", {
        "runs": ",".join(on_card(each["run"]) for each in said["runs"]),
        "weights": ",".join(str(each["weight"]) for each in said["runs"]),
        "by": said["by"],
        "rank": said["rank"],
        "density": said["density"],
        "seed": said["seed"],
        "keep": ",".join(said["kept"]),
    }


def code(text: str) -> str:
    """A text as inline code, on one line."""
    text = " ".join(text.split())
    fence = "`" * (_ticks(text) + 1)
    room = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{room}{text}{room}{fence}" if text else ""


def block(text: str, language: str = "") -> str:
    """Lines as a block of code."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a `|` in a cell stays one."""
    return Table(heads, list(rows)).to_markdown(escape=False)


def _ticks(text: str) -> int:
    """How many backticks follow each other at most."""
    return max(map(len, re.findall("`+", text)), default=0)
