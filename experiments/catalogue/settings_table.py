"""Every setting of a config, from its class: its type, its default, and what it means.

The meaning is the text below the setting in `configs/settings.py`, so there is no list to keep up.
"""

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from configs import settings
from lora_jax.files.marked_documents import fill_blocks
from lora_jax.table import Table

KINDS = {
    "encoders": settings.ClassifierConfig,
    "decoders": settings.TextConfig,
    "own models": settings.OwnConfig,
}
HEADS = ("key", "type", "default", "of", "meaning")
NO_KEYS = ("plain", "settings")
"""Fields that are not keys of a config: the config as data, and a variant's own fields."""


class Row(NamedTuple):
    """A setting, in the words of the table; `of` has the kinds of models, empty for all."""

    key: str
    type: str
    default: str
    of: str
    meaning: str


def rows() -> list[Row]:
    """The settings of all kinds of runs, in the order of their classes."""
    found: dict[tuple[str, ...], list[str]] = {}
    for kind, config in KINDS.items():
        for each in _keys(config):
            found.setdefault(each, []).append(kind)
    made = [
        Row(key, of_type, default, "" if len(kinds) == len(KINDS) else ", ".join(kinds), meaning)
        for (key, of_type, default, meaning), kinds in found.items()
    ]
    sections = list(dict.fromkeys(_section(row.key) for row in made))
    return sorted(made, key=lambda row: sections.index(_section(row.key)))


def markdown() -> str:
    """The table as Markdown."""
    shown = [row._replace(key=f"`{row.key}`") for row in rows()]
    return Table(HEADS, shown).to_markdown(escape=False)


def fill(text: str) -> str:
    """A document with the table between `<!-- settings -->` and `<!-- /settings -->`."""
    return fill_blocks(text, "settings", lambda _: markdown())


def _section(key: str) -> str:
    return key.split(".")[0] if "." in key else ""


def _keys(kind: type, before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """The key, type, default and meaning of each setting of a section and those within it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{before}{field.name}"
        if field.name in NO_KEYS:
            continue
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _keys(hint, f"{key}.")
        else:
            yield key, _type(hint), _default(field), _meaning(kind, field.name)


def _type(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    kind = typing.get_origin(hint)
    if isinstance(kind, type) and kind is not type(int | None):
        return {"tuple": "list", "Mapping": "table"}.get(kind.__name__, kind.__name__)
    return " or ".join(_type(each).replace("NoneType", "none") for each in typing.get_args(hint))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        if field.default in (None, "", ()):
            return "none"
        if isinstance(field.default, tuple):
            return f"`{', '.join(map(str, field.default))}`"
        return f"`{field.default}`"
    return "" if field.default_factory is dataclasses.MISSING else "empty"


def _meaning(kind: type, name: str) -> str:
    """What stands below a setting in its class, or in the class that this one extends."""
    texts = (_texts(each).get(name) for each in kind.__mro__ if dataclasses.is_dataclass(each))
    return next((text for text in texts if text), "")


@functools.cache
def _texts(kind: type) -> dict[str, str]:
    """The text below each setting of a class, by name, on one line."""
    (found,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(found, ast.ClassDef)
    pairs = zip(found.body, found.body[1:], strict=False)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
