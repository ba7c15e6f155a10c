"""A file of texts that a run has not seen: read by the columns that the run was trained on."""

from pathlib import Path
from typing import NamedTuple

from configs.settings import ClassifierConfig, RunConfig
from lora_jax.data.sources import alpaca, rows
from lora_jax.data.tasks import SPECS, Record, examples

TextOrPair = str | tuple[str, str]


class NewTexts(NamedTuple):
    """The rows of a file, and the texts in them; with the names of `choices`, as many of a row."""

    rows: list[rows.Row]
    texts: list[TextOrPair]
    choices: tuple[str, ...] = ()


def is_of_pairs(config: RunConfig) -> bool:
    """Whether a run reads pairs of texts."""
    spec = SPECS.get(config.data.name) if config.data.source in ("tsv", "tfds") else None
    return bool(spec.seconds if spec else config.data.files.get("second_text"))


def read(path: Path, config: RunConfig) -> NewTexts:
    """The rows of a TSV, CSV or JSONL file with the columns of a run's own data.

    Those of a benchmark have their names in the run's source, and that of the demonstration is
    `text`. For a language model a row has `prompt`, or `instruction` and perhaps `input`, as in
    Alpaca's format; its file may also be JSON.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one line that names the file and the wrong line or column.
    """
    source, name = config.data.source, config.data.name
    benchmark = isinstance(config, ClassifierConfig) and source in ("tsv", "tfds")
    if not isinstance(config, ClassifierConfig) and path.suffix.lower() == ".json":
        found = rows.read_list(path)
    else:
        found = rows.read_rows(path, any_width=benchmark)
    if not found:
        raise ValueError(f"{path} has no rows")
    if not isinstance(config, ClassifierConfig):
        return NewTexts(found, [_prompt(row) for row in found])
    if benchmark:
        spec = SPECS[name]
        columns = spec.columns if source == "tsv" else {each: each for each in spec.columns}
        values = [{key: row.text(each) for key, each in columns.items()} for row in found]
        made = examples(spec, str(path), [Record(each, None) for each in values])
        first, second = list(made.texts), made.second_texts
        choices = spec.label_names if spec.choices > 1 and spec.label_names else ()
        return NewTexts(found, _joined(first, second), choices)
    files = config.data.files
    first = [row.text(files.get("text") or "text") for row in found]
    column = files.get("second_text")
    return NewTexts(found, _joined(first, [row.text(column) for row in found] if column else None))


def _joined(first, second) -> list[TextOrPair]:
    return first if second is None else list(zip(first, second, strict=True))


def _prompt(row: rows.Row) -> str:
    if "prompt" in row.values:
        return row.text("prompt")
    more = "" if row.values.get("input") is None else row.text("input")
    return alpaca.prompt(row.text("instruction"), more)
