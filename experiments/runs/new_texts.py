"""A file of texts that a run has not seen: read by the columns that the run was trained on."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.settings import RunConfig, TextConfig
from lora_jax.data.sources import alpaca, rows
from lora_jax.data.tasks import SPECS, Record, TaskSpec, examples
from lora_jax.messages import agree, joined

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
    Alpaca's format; its file may also be JSON. A null of a JSONL file is an empty text, as an empty
    cell is. A warning names the lines with an empty text.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one line that names the file and the wrong line or column, or an empty prompt.
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
    second = files.get("second_text")
    if spec is None:
        columns = {"text": files.get("text") or "text", **({"second": second} if second else {})}
    else:
        named = config.data.source == "tsv"  # as its files name them
        columns = spec.columns if named else {each: each for each in spec.columns}
    values = [{key: _text(row, each) for key, each in columns.items()} for row in found]
    texts_of = zip(found, values, strict=True)
    _warn_of_empty(path, [row for row, each in texts_of if not all(map(str.strip, each.values()))])
    if spec is None:
        texts = [each["text"] for each in values]
        pairs = [each["second"] for each in values] if second else None
    else:
        made = examples(spec, str(path), [Record(each, None) for each in values])
        texts, pairs = list(made.texts), made.second_texts
    several = spec.label_names if spec and spec.choices > 1 else None
    return NewTexts(found, list(zip(texts, pairs, strict=True)) if pairs else texts, several or ())


def _prompt(row: rows.Row) -> str:
    asked = "prompt" if "prompt" in row.values else "instruction"
    if asked not in row.values:
        found = ", ".join(f"'{each}'" for each in row.values)
        raise ValueError(f"{row.where}: no column 'prompt' or 'instruction'; it has {found}")
    if not (text := _text(row, asked)).strip():
        raise ValueError(f"{row.where}: '{asked}' is empty: write one, or leave the row out")
    if asked == "prompt":
        return text
    return alpaca.prompt(text, _text(row, "input") if "input" in row.values else "")


def _text(row: rows.Row, column: str) -> str:
    """A row's text; null is empty."""
    return "" if row.value(column) is None else row.text(column)


def _warn_of_empty(path: Path, empty: Sequence[rows.Row], most: int = 5) -> None:
    """Warn of rows with an empty text, once, with the first of their lines."""
    if not empty:
        return
    lines = [row.where.rpartition("line ")[2] for row in empty]
    if len(lines) > most:
        lines[most:] = [f"{len(lines) - most} more"]
    which = f"{agree(len(empty), 'line', 'lines')} {joined(lines)}"
    warnings.warn(f"{path}: {which} {agree(len(empty), 'has', 'have')} an empty text", stacklevel=3)
