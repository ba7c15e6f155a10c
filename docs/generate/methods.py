"""A page for each method of `variants/`, from its code and docstrings."""

import dataclasses
import re
import sys
from collections.abc import Iterator

from sphinx.pycode import ModuleAnalyzer

import variants
from docs.generate import counts, snippets
from docs.generate.docstrings import escaped, prose
from docs.generate.rst import fenced, heading, table
from experiments.catalogue import catalogue, methods_tables
from experiments.catalogue.catalogue import Method
from lora_jax.variant import Variant

SHAPES = ("768x768", "768x3072", "4096x4096", "4096x11008")
"""The matrices whose parameters are counted: BERT's two, and Llama 2 7B's two."""


def pages() -> Iterator[tuple[str, str]]:
    """The name and text of each page; nothing is compiled or trained."""
    found = catalogue.of_matrix(catalogue.shape_of(catalogue.SHAPE))
    for method in found.methods:
        yield f"{method.name}.rst", page(method)


def with_pages(text: str) -> str:
    """The page `reference/methods` as the site has it: a name leads to the page of the method."""
    folder, names = "../generated/methods", variants.names()
    for name in names:
        cell = name.replace("_", r"\_")
        text = text.replace(f"\n| {cell} |", f"\n| [{cell}]({folder}/{name}.rst) |")
    text = re.sub(r"^\*\*(.*)\*\*$", r"## \1", text, flags=re.MULTILINE)
    wide = "```{rst-class} methods\n```\n\n| file"  # its sentences need more width
    pages = "\n".join(f"{folder}/{name}" for name in names)
    return f"{text.replace('| file', wide, 1)}\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def page(method: Method) -> str:
    """All that the code says about one method, as reStructuredText."""
    kind = variants.find(method.name)
    parts = [
        heading(method.title, "="),
        prose(_without_name(sys.modules[kind.__module__].__doc__ or "")),
        prose(kind.__doc__ or ""),
        _elsewhere(method),
        heading("Example", "-"),
        fenced("python", snippets.snippet(method.name)),
        heading("Settings", "-"),
        _settings(kind),
        _suggested(kind),
        heading("Trained parameters", "-"),
        _count(method, kind),
        heading("What it can do", "-"),
        _abilities(method),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _without_name(docstring: str) -> str:
    """A module's docstring without the method's name and the colon that begin it."""
    name, colon, rest = docstring.partition(": ")
    return rest[0].upper() + rest[1:] if colon and "\n" not in name else docstring


def _elsewhere(method: Method) -> str:
    """Where the method is in other projects, and its paper."""
    rank = method.served_rank
    served = (
        "not as an adapter; the merged model is served"
        if rank is None
        else (f"as plain LoRA of rank {rank}, with the default settings")
    )
    rows = [
        ("Name", f"``{method.name}``, in ``variants/{method.name}.py``"),
        ("Paper", f"`{method.paper} <{method.paper}>`__" if method.paper else "none"),
        ("Hugging Face PEFT", f"``{method.peft}``" if method.peft else "not there"),
    ]
    if method.abilities is not None:
        rows.append(("vLLM", served))
    return table(None, rows)


def _settings(kind: type[Variant]) -> str:
    """The fields with types, defaults and the docstrings below them."""
    said = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            found = ModuleAnalyzer.for_module(each.__module__).find_attr_docs()
            said |= {name: text for (owner, name), text in found.items() if owner == each.__name__}
    rows = [
        (
            f"``{field.name}``",
            f"``{_type(field.type)}``",
            f"``{field.default!r}``",
            escaped(" ".join(" ".join(said.get(field.name, [])).split())),
        )
        for field in dataclasses.fields(kind)
    ]
    return table(("setting", "type", "default", "meaning"), rows) if rows else "It has none."


def _type(kind: object) -> str:
    return kind.__name__ if type(kind) is type else str(kind)


def _suggested(kind: type[Variant]) -> str:
    rates = kind.suggested
    tried = ", ".join(f"{rate:g}" for rate in rates.tried)
    return (
        f"A config without a learning rate takes {rates.small:g} for a small encoder and "
        f"{rates.large:g} for a larger model. Studies try a grid around the middle of {tried}."
    )


def _count(method: Method, kind: type[Variant]) -> str:
    if method.abilities is None:
        return "It has no adapter: what trains is a part of the model itself."
    rows = []
    for shape in SHAPES:
        try:
            number = f"{variants.make(method.name).count(catalogue.shape_of(shape)):,}"
        except ValueError as error:
            number = escaped(str(error))
        rows.append((shape, number))
    said = "For one matrix of ``in`` inputs and ``out`` outputs, beside what all matrices share:"
    parts = [said, *counts.lines(kind), "With the default settings:"]
    return "\n\n".join([*parts, table(("matrix", "trained parameters"), rows)])


def _abilities(method: Method) -> str:
    if method.abilities is None:
        return "It has no adapter, so none of what adapters can do applies."
    own = dataclasses.asdict(method.abilities)
    rows = [
        (head, own[name] or "does not apply") for name, head in methods_tables.ABILITIES.items()
    ]
    said = ":doc:`The table of all methods <../../reference/methods>` says what the words mean."
    return f"{table(('ability', 'answer'), rows)}\n\n{said}"
