"""A finished run as a function of texts.

    from experiments import load_run

    classify = load_run("runs/lora")
    classify(["a moving film", "dull"])  # ["positive", "negative"]

Neither the data that the run was trained on nor its predictions are read.
"""

import dataclasses
import functools
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.settings import ClassifierConfig, TextConfig, TokenSettings
from experiments.runs.finished_run import ADAPTER, FinishedRun, open_run, read_record
from experiments.runs.generated_texts import stepper, write_with
from experiments.runs.new_texts import TextOrPair, is_of_pairs
from experiments.setup import from_config, from_data
from experiments.setup.completion import in_template
from experiments.setup.config import parse
from experiments.setup.own_model import require_published
from lora_jax import data
from lora_jax.data.tokenizing.tokenize import Tokenizer
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.generation.lanes import buckets
from lora_jax.messages import agree
from lora_jax.models.published.load import read_decoder_config, read_encoder_config
from lora_jax.models.published.location import locate
from lora_jax.records import run_record

HEAD = "params/classifier/kernel"
"""The head's weight in the file of an adapter: its columns are the classes."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """A run that answers texts; `load_run` makes it.

    Args:
      run: the run: its record and config, the adapted model, and what was trained.
      merged: whether the adapter is merged into the weights.
      batch_size: how many texts are computed at once.
      max_length: the most tokens of a text; what is longer is cut, as in training.
    """

    run: FinishedRun
    merged: bool
    batch_size: int
    max_length: int

    def __repr__(self) -> str:
        config, merged = self.run.config, ", merged" if self.merged else ""
        return (
            f"LoadedRun({self.run.folder}: {config.variant.name}{merged}, on {config.model.name}; "
            f"{config.data.name}, predicts {self._predicts})"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in order; empty for numbers and for a language model."""
        return self.run.labels

    @property
    def tokenizer(self) -> Tokenizer:
        return self.run.experiment.texts.tokenizer

    def __call__(self, texts: Sequence[TextOrPair]) -> list[str] | list[float]:
        """The class of each text, its number, or what a language model writes after it.

        Args:
          texts: texts, or pairs of texts for a run that was trained on pairs. A prompt is put into
            the model's chat template if the run was trained in it.

        Raises:
          ValueError: the texts are not of the kind that the run reads; one line names the first.
        """
        if isinstance(self.run.config, TextConfig):
            return self._written(self.run.config, self._checked(texts))
        outputs = self.outputs(texts)
        if not self.labels:
            return outputs[:, 0].tolist()
        return [self.labels[each] for each in outputs.argmax(1)]

    def probabilities(self, texts: Sequence[TextOrPair]) -> np.ndarray:
        """The probability of each class, (n, classes) float32, in the order of `labels`."""
        if not self.labels:
            raise ValueError(f"{self.run.folder} has no classes: it predicts {self._predicts}")
        return np.asarray(jax.nn.softmax(self.outputs(texts)))

    def outputs(self, texts: Sequence[TextOrPair]) -> np.ndarray:
        """The outputs of an encoder's head, (n, classes) or (n, 1), as in `predictions.npz`."""
        if not isinstance(self.run.config, ClassifierConfig):
            raise ValueError(f"{self.run.folder} has no outputs: it predicts {self._predicts}")
        if not (given := self._checked(texts)):
            return np.zeros((0, len(self.labels) or 1), np.float32)
        pairs = is_of_pairs(self.run.config)
        first, second = zip(*given, strict=True) if pairs else (given, None)
        examples = data.Examples("texts", first, None, second)
        encoded = data.encode(self.tokenizer, examples, self.max_length)
        if encoded.truncated:
            cut, are = encoded.truncated, agree(encoded.truncated, "is", "are")
            said = f"{cut} of {len(encoded)} texts {are} cut to {self.max_length} tokens"
            warnings.warn(said, stacklevel=2)
        known = {"encoded": {"texts": encoded}, "boundaries": buckets(self.max_length)}
        made = dataclasses.replace(self.run.experiment.texts, **known)
        size = self.batch_size
        return made.outputs("texts", size, lambda b: self._model(made.batch("texts", b, size)))

    @property
    def _predicts(self) -> str:
        if isinstance(self.run.config, TextConfig):
            return "texts"
        return f"{len(self.labels)} classes" if self.labels else "numbers"

    def _checked(self, texts: Sequence[TextOrPair]) -> list[Any]:
        """The texts or pairs as a list."""
        pairs = is_of_pairs(self.run.config)
        one, all_of = ("pair of texts", "pairs of texts") if pairs else ("text", "texts")
        table = isinstance(texts, Mapping) or hasattr(texts, "columns")  # it gives its columns
        if isinstance(texts, str) or table or not isinstance(texts, Iterable):
            raise ValueError(f"expected a list of {all_of}, not {type(texts).__name__}")
        given = list[Any](texts)
        for place, each in enumerate(given):
            parts = [each]
            if pairs:
                parts = list(each) if isinstance(each, tuple | list | np.ndarray) else []
            if len(parts) != 1 + pairs or not all(isinstance(part, str) for part in parts):
                shown = reprlib.repr(each)
                raise ValueError(
                    f"expected a list of {all_of}: entry {place} is {shown}, not a {one}"
                )
        return given

    def _written(self, config: TextConfig, texts: Sequence[str]) -> list[str]:
        if not texts:
            return []
        part = data.Prompts("texts", texts, [""] * len(texts))
        asked = in_template(config, data.TextTask("texts", part, part), self.tokenizer)
        return write_with(self.run.experiment, self._model, asked.validation.prompts)

    @functools.cached_property
    def _model(self) -> Any:
        """What computes the outputs of a batch, or what generates."""
        experiment, trainable = self.run.experiment, self.run.trainable
        if isinstance(self.run.config, TextConfig):
            return stepper(experiment, trainable, self.merged)
        return (experiment.merged_call if self.merged else experiment.adapted_call)(trainable)


def load_run(
    folder: str | Path,
    *,
    merged: bool = False,
    batch_size: int | None = None,
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
) -> LoadedRun:
    """Load a finished run from its folder; its base model must be where it was.

    Args:
      folder: what `experiments.train` had as `--workdir`.
      merged: merge the adapter into the weights: faster, and the same but for rounding.
      batch_size: how many texts are computed at once; by default as many as in training, or for a
        language model, as many as the run generated at once.
      max_length: the most tokens of a text, or of a prompt; by default as in training.
      labels: the names of the classes in order, of a run of an earlier version whose data is gone.

    Raises:
      ValueError, FileNotFoundError: one line on why the folder cannot be loaded.
    """
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} is {value!r}, not a whole number of at least 1")
    folder = Path(folder)
    record = read_record(folder, "")
    config = parse(record.config)
    require_published(config, "load_run")
    assert isinstance(config.data, TokenSettings)
    where = locate(config.model.name)
    writes = isinstance(config, TextConfig)
    most = (read_decoder_config if writes else read_encoder_config)(where).max_tokens
    most -= config.generate.max_new_tokens if writes else 0
    if max_length is not None and max_length > most:
        after = f" before the {config.generate.max_new_tokens} that it writes" if writes else ""
        raise ValueError(f"max_length {max_length}: the model takes at most {most:,} tokens{after}")
    length = min(max_length or config.data.max_length, most)
    size = batch_size or (config.generate if writes else config.train).batch_size
    task = stand_in(record, class_names(folder, record, labels))
    if record.gathered and not (folder / from_data.FILE).is_file():
        task = None  # the start of the adapter is made again from the data
    run = open_run(folder, record, task)
    if writes:
        experiment, changes = run.experiment, dict[str, Any](prompt_limit=length)
        section = dataclasses.replace(config.generate, batch_size=size)
        experiment = dataclasses.replace(
            experiment,
            config=dataclasses.replace(config, generate=section),
            texts=dataclasses.replace(experiment.texts, **changes),
        )
        run = dataclasses.replace(run, experiment=experiment)
    return LoadedRun(run, merged, size, length)


def class_names(
    folder: Path, record: run_record.Record, given: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The names of a run's classes in order; empty for a regression and for a language model.

    Records of earlier versions do not have them: they are `given`, or else read from the data.

    Raises:
      ValueError: one line on what to give, or on why it is wrong.
    """
    config, known = parse(record.config), record.label_names
    file = SafetensorsBytes(folder / ADAPTER)
    outputs = file.shape(HEAD)[1] if HEAD in file.names() else None
    if isinstance(config, TextConfig) or (known is None and outputs == 1):
        known = []
    if known is None and given is not None:
        if len({*given}) < 2 or outputs not in (None, len({*given})):
            count = outputs or "two or more"
            raise ValueError(f"--labels={','.join(given)}: {folder} has {count} different classes")
        known = [*given]
    if known is None:
        return _of_the_data(folder, record, outputs)
    if given is not None and [*given] != known:
        said = f"its classes are {', '.join(known)}" if known else "it has no classes"
        raise ValueError(f"--labels={','.join(given)} is not for {folder}: {said}")
    return tuple(known)


def _of_the_data(folder: Path, record: run_record.Record, outputs: int | None) -> tuple[str, ...]:
    why = "have changed"
    try:
        with warnings.catch_warnings(action="ignore"):
            task: Any = from_config.make_any_task(parse(record.config))
        if task.digest() == record.data_digest:
            return tuple(task.label_names or ())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        why = f"cannot be read ({' '.join(str(error).split())})"
    names = f"all {outputs} names" if outputs else "all names"
    raise ValueError(
        f"{folder}: the record comes from an earlier version, which does not name the classes, and "
        f"the data {why}: give {names} in the order of training, --labels=A,B"
    )


def stand_in(record: run_record.Record, labels: Sequence[str]) -> data.Task | data.TextTask:
    """Two texts in the place of a run's data, whose digest they have: a model needs no more."""
    name, texts = record.config["data"]["name"], ["a", "b"]
    if isinstance(parse(record.config), TextConfig):
        part = data.Prompts("texts", texts, texts)
        return _TextsOf(name, part, part, recorded=record.data_digest)
    examples = data.Examples("texts", texts, np.array([0, 1], None if labels else np.float64))
    given = {"label_names": tuple(labels) or None, "recorded": record.data_digest}
    return _DataOf(name, examples, examples, **given)


@dataclasses.dataclass(frozen=True, eq=False)
class _DataOf(data.Task):
    recorded: str = ""

    def digest(self) -> str:
        return self.recorded


@dataclasses.dataclass(frozen=True, eq=False)
class _TextsOf(data.TextTask):
    recorded: str = ""

    def digest(self) -> str:
        return self.recorded
