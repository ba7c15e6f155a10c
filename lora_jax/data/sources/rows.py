"""Rows of a TSV, CSV or JSONL file, each with the line that it starts on, for error messages.

A cell holds what is written in the file: no number is rounded.
"""

import collections
import csv
import re
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_jax.files import json_text, number_text
from lora_jax.messages import count, naming, nearest

SUFFIXES = (".tsv", ".csv", ".jsonl")

# Zero-width joiners and non-joiners are normal between Persian letters and the parts of an emoji.
_JOINER = re.compile("(?<=[^\0-\x7f])[\u200c\u200d](?=[^\0-\x7f])")
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

# A field may be a whole document, longer than csv's default limit, which is global to the process.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


class Row(NamedTuple):
    """The values of one row by column, and where it stands, for messages: `FILE, line 3`."""

    where: str
    values: dict[str, Any]

    def value(self, column: str) -> Any:
        """A row's value; `ValueError` if it has no such column."""
        if column not in self.values:
            near = nearest(column, self.values)
            joined = len(self.values) == 1 and {";", "\t"} & {*next(iter(self.values))}
            how = "; commas separate the columns of a CSV file, and tabs those of a TSV file"
            listed = ", ".join(f"'{each}'" for each in self.values)
            near += f"; it has {listed}" if len(near) < len(listed) else ""
            raise ValueError(
                f"{self.where}: no column '{column}'; nearest: {near}{how if joined else ''}"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """A row's text; `ValueError` if the column is missing or is not a text."""
        found = self.value(column)
        if not isinstance(found, str):
            raise ValueError(f"{self.where}: '{column}' is {shown(found)}, not a text")
        try:
            found.encode()
        except UnicodeEncodeError:  # JSON can escape half a pair, which no tokenizer accepts
            raise ValueError(f"{self.where}: '{column}' has half of a surrogate pair") from None
        return found

    def written(self, column: str) -> str:
        """A row's number, name, true or false as it is written; empty for null.

        ValueError for a list or an object, and for anything that makes equal-looking values differ:
        surrounding spaces, and invisible characters such as control characters, zero-width spaces
        and non-breaking spaces.
        """
        found = self.value(column)
        if isinstance(found, list | dict):
            raise ValueError(f"{self.where}: '{column}' is {shown(found)}, not one number or name")
        if isinstance(found, str):
            found = self.text(column)
            if found != found.strip() and found.strip():
                raise ValueError(f"{self.where}: '{column}' is {found!r}, with spaces around it")
            if found.strip() and not _JOINER.sub("", found).isprintable():
                said = f"'{column}' is {found!a}, with an invisible character"
                raise ValueError(f"{self.where}: {said}")
            return found.strip()
        if isinstance(found, bool):
            return "true" if found else "false"
        return "" if found is None else str(found)


def folder_of(source: str, folder: str | Path | None) -> Path:
    """The folder that a source reads, which must be given and exist."""
    if not folder:
        raise FileNotFoundError(f"data.source '{source}' needs data.folder")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    return Path(folder)


def read_rows(path: Path, header: Sequence[str] = (), any_width: bool = False) -> list[Row]:
    """All rows of a UTF-8 file, in order; blank lines are left out.

    TSV is read without quoting, as in GLUE: a `"` is an ordinary character. CSV has the usual
    quoting. A JSONL file has one object per line; its numbers with a fraction or an exponent are
    Decimals. `header` names the columns of a file without a header. With `any_width`, a row may be
    shorter than the header (it then lacks the last columns) or longer, and if two columns have the
    same name, the last one counts. Raises `FileNotFoundError`, or `ValueError` that names the wrong
    line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is not named {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with naming(f"{path} is not UTF-8", UnicodeDecodeError):
        found = _objects(path) if suffix == ".jsonl" else _delimited(path, header, any_width)
        return list(found)


def read_list(path: Path) -> list[Row]:
    """The rows of a `.json` file, which is one list of objects; errors as for `read_rows`."""
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path} is not named .json or .jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = json_text.read(path)
    except ValueError as error:
        raise ValueError(f"{error} (if each line is an entry, name it .jsonl)") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is not a list of entries")
    return [_row(f"{path}, entry {number}", values) for number, values in enumerate(found, 1)]


def target(text: str) -> float | None:
    """A regression's target; None if it is not a number or not in float32's normal range.

    Models train in float32, which would hold such a number as infinity, zero or with fewer bits.
    """
    exact = number_text.read(text)
    if exact is None or (exact and not _LEAST <= abs(float(exact)) <= _MOST):
        return None
    return float(exact)


def whole(number: Decimal) -> bool:
    """Whether a number has no fraction."""
    return int(number) == number


def shown(value: Any) -> str:
    """A value as error messages show it."""
    return str(value) if isinstance(value, Decimal) else repr(value)


def _delimited(path: Path, header: Sequence[str], any_width: bool) -> Iterator[Row]:
    names = list(header)
    for line, fields in _of_tsv(path) if path.suffix.lower() == ".tsv" else _of_csv(path):
        if not fields:
            continue
        if not names:
            names = fields
            twice = [name for name, n in collections.Counter(names).items() if n > 1]
            if twice and not any_width:
                raise ValueError(f"{path}: two columns are called '{twice[0]}'")
            continue
        if len(fields) != len(names) and not any_width:
            raise ValueError(
                f"{path}, line {line}: {count(len(fields), 'column')}, the header has {len(names)}"
            )
        yield Row(f"{path}, line {line}", dict(zip(names, fields, strict=False)))


def _of_tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields; none for a blank line.

    A carriage return inside a line is a part of its field. Python's csv would end the row there.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, whole in enumerate(file, 1):
            content = whole.rstrip("\r\n")
            if line == 1 and not whole.endswith("\n") and "\r" in content:
                raise ValueError(f"{path}: lines end in carriage returns; write line feeds instead")
            yield line, content.split("\t") if content else []


def _of_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and fields; none for a blank line."""
    # Quoted fields may contain line ends, which the reader must see unchanged.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: a quoted field begins in this row and has no end "
                    f'({error}); a quote inside a field is written twice, ""'
                ) from error
            if fields is None:
                return
            yield line, fields


def _objects(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            where = f"{path}, line {line}"
            yield _row(where, json_text.loads(content, where, exact=True))


def _row(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a JSON object")
    return Row(where, values)
