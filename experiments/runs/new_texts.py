"""A file of texts that a run has not seen: read by the columns that the run was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.settings import RunConfig, TextConfig
from lora_jax.data.sources import alpaca, rows
from lora_jax.data.tasks import SPECS, Record, TaskSpec, examples

TextOrPair = str | tuple[str, str]


class NewTexts(NamedTuple):
    """The rows of a file, and the texts in them; with the names of `choices`, as many of a row."""

    rows: list[rows.Row]
    texts: Sequence[TextOrPair]
    choices: tuple[str, ...] = ()


def is_of_pairs(config: RunConfig) -> bool:
    """Whether a run reads pairs of texts."""
    spec = _benchmark(config)
    return bool(spec.seconds if spec else config.data.files.get("second_text"))


def _benchmark(config: RunConfig) -> TaskSpec | None:
    """The task of a run's data, if it is one of a benchmark."""
    return SPECS[config.data.name] if config.data.source in ("tsv", "tfds") else None


def read(path: Path, config: RunConfig) -> NewTexts:
    """The rows of a TSV, CSV or JSONL file with the columns of a run's own data.

    Those of a benchmark have their names in the run's source, and that of the demonstration is
    `text`. For a language model a row has `prompt`, or `instruction` and perhaps `input`, as in
    Alpaca's format; its file may also be JSON.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one line that names the file and the wrong line or column.
    """
    spec, writes, files = _benchmark(config), isinstance(config, TextConfig), config.data.files
    if writes and path.suffix.lower() == ".json":
        found = rows.read_list(path)
    else:
        found = rows.read_rows(path, any_width=spec is not None)
    if not found:
        raise ValueError(f"{path} has no rows")
    if writes:
        return NewTexts(found, [_prompt(row) for row in found])
    if spec is None:
        second = files.get("second_text")
        texts = [row.text(files.get("text") or "text") for row in found]
        pairs = [row.text(second) for row in found] if second else None
    else:
        named = config.data.source == "tsv"  # as its files name them
        columns = spec.columns if named else {each: each for each in spec.columns}
        values = [{key: row.text(each) for key, each in columns.items()} for row in found]
        made = examples(spec, str(path), [Record(each, None) for each in values])
        texts, pairs = list(made.texts), made.second_texts
    several = spec.label_names if spec and spec.choices > 1 else None
    return NewTexts(found, list(zip(texts, pairs, strict=True)) if pairs else texts, several or ())


def _prompt(row: rows.Row) -> str:
    if "prompt" in row.values:
        return row.text("prompt")
    if "instruction" not in row.values:
        found = ", ".join(f"'{each}'" for each in row.values)
        raise ValueError(f"{row.where}: no column 'prompt' or 'instruction'; it has {found}")
    more = "" if row.values.get("input") is None else row.text("input")
    return alpaca.prompt(row.text("instruction"), more)
