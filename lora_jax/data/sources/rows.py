"""Rows of a TSV, CSV or JSONL file with the lines that they start on, for errors that name them.

What a cell holds is what stands in the file: no number is rounded on the way.
"""

import collections
import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_jax.files import json_text, number_text
from lora_jax.suggest import nearest

SUFFIXES = (".tsv", ".csv", ".jsonl")

# Between letters of Persian or parts of an emoji, what joins or parts them is how they are written.
_JOINER = re.compile("(?<=[^\0-\x7f])[\u200c\u200d](?=[^\0-\x7f])")
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

# A field may be a whole document. The limit is one of the process, and lower than some are long.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


class Row(NamedTuple):
    """The values of one row by column, and its line in the file, counted from 1."""

    line: int
    values: dict[str, Any]


def read_rows(path: Path, header: Sequence[str] = (), any_width: bool = False) -> list[Row]:
    """All rows of a UTF-8 file, in order; blank lines are left out.

    TSV is read as GLUE has it, without quoting: a `"` is a character. CSV is quoted as usual. A
    JSONL file has one object a line; its numbers with a fraction are Decimals. `header` names the
    columns of a file that does not itself. With `any_width`, a row may be shorter than its header
    (it then lacks the last columns) or longer, and of columns of one name the last one counts.
    Raises `FileNotFoundError`, or `ValueError` with the line at fault.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is not named {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if suffix == ".jsonl":
            return list(_objects(path))
        return list(_delimited(path, header, any_width))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def value(path: Path, row: Row, column: str) -> Any:
    """A row's value; `ValueError` if it has no such column."""
    if column not in row.values:
        raise ValueError(
            f"{path}, line {row.line}: no column '{column}'; nearest: {nearest(column, row.values)}"
        )
    return row.values[column]


def text(path: Path, row: Row, column: str) -> str:
    """A row's text; `ValueError` if it has none."""
    found = value(path, row, column)
    if not isinstance(found, str):
        raise ValueError(f"{path}, line {row.line}: '{column}' is {shown(found)}, not a text")
    try:
        found.encode()
    except UnicodeEncodeError:  # JSON can escape half of a pair, which no tokenizer can take
        raise ValueError(
            f"{path}, line {row.line}: '{column}' has half of a surrogate pair"
        ) from None
    return found


def written(path: Path, row: Row, column: str) -> str:
    """A row's number, name, true or false as it is written; empty for null.

    ValueError for a list or an object, and for what another row may lack though both look alike:
    spaces around it, and characters that nobody sees, such as control characters, spaces of no
    width and spaces that do not break.
    """
    found = value(path, row, column)
    if isinstance(found, list | dict):
        raise ValueError(
            f"{path}, line {row.line}: '{column}' is {shown(found)}, not one number or name"
        )
    if isinstance(found, str):
        found = text(path, row, column)
        if found != found.strip() and found.strip():
            raise ValueError(
                f"{path}, line {row.line}: '{column}' is {found!r}, with spaces around"
            )
        if found.strip() and not _JOINER.sub("", found).isprintable():
            raise ValueError(
                f"{path}, line {row.line}: '{column}' is {found!a}, with a character that is "
                "not seen"
            )
        return found.strip()
    if isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)


def target(text: str) -> float | None:
    """A regression's target; None for no number, and for one beyond float32, in which models train.

    A float32 would hold that one as an infinity, as zero or with fewer bits than others.
    """
    exact = number_text.read(text)
    if exact is None or (exact and not _LEAST <= abs(float(exact)) <= _MOST):
        return None
    return float(exact)


def whole(number: Decimal) -> bool:
    """Whether a number has no fraction."""
    return int(number) == number


def shown(value: Any) -> str:
    """A value as errors show it."""
    return str(value) if isinstance(value, Decimal) else repr(value)


def _delimited(path: Path, header: Sequence[str], any_width: bool) -> Iterator[Row]:
    is_tsv = path.suffix.lower() == ".tsv"
    # Quoted CSV fields may have line ends of their own, which the reader has to see as they are.
    with path.open(encoding="utf-8-sig", newline=None if is_tsv else "") as file:
        quoting = csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL
        reader = csv.reader(file, delimiter="\t" if is_tsv else ",", quoting=quoting, strict=True)
        names = list(header)
        for line, fields in _numbered(path, reader):
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
                    f"{path}, line {line}: {len(fields)} columns, the header has {len(names)}"
                )
            yield Row(line, dict(zip(names, fields, strict=False)))


def _numbered(path: Path, reader: Any) -> Iterable[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        if fields is None:
            return
        yield line, fields


def _objects(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            values = json_text.loads(content, f"{path}, line {line}", exact=True)
            if not isinstance(values, dict):
                raise ValueError(f"{path}, line {line} is not a JSON object")
            yield Row(line, values)
