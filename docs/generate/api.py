"""The reference of the library: a page for each public name, and one for each folder's modules.

Autodoc reads signatures and docstrings as Sphinx builds the pages.
"""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator

import lora_jax
from docs.generate.docstrings import escaped
from docs.generate.rst import heading, table


def names() -> list[str]:
    """What `lora_jax` exports."""
    return sorted(set(dir(lora_jax)) - {"__version__"}, key=str.lower)


def packages() -> list[str]:
    """The folders of the library, `lora_jax.training` and so on."""
    found = pkgutil.walk_packages(lora_jax.__path__, "lora_jax.")
    return [each.name for each in found if each.ispkg]


def pages() -> Iterator[tuple[str, str]]:
    """The name and text of each page."""
    yield "index.rst", _index()
    for name in names():
        yield f"{name}.rst", _page(name)
    for package in packages():
        yield f"modules/{package}.rst", _package(package)


def _index() -> str:
    rows = [(f":doc:`{name}`", escaped(_first_line(getattr(lora_jax, name)))) for name in names()]
    folders = [
        (f":doc:`{name} <modules/{name}>`", escaped(_first_line(importlib.import_module(name))))
        for name in packages()
    ]
    listed = "\n".join(f"   {name}" for name in [*names(), *(f"modules/{p}" for p in packages())])
    parts = [
        heading("Library", "="),
        "``import lora_jax as lj`` gives these names. :doc:`Variants <../../reference/methods>` "
        "come from ``variants.make``.",
        table(("name", "what it is"), rows),
        heading("Modules", "-"),
        "The names above are what programs need most. All else is in folders:",
        table(("folder", "what is in it"), folders),
        f".. toctree::\n   :hidden:\n   :maxdepth: 1\n\n{listed}",
    ]
    return "\n\n".join(parts) + "\n"


def _page(name: str) -> str:
    value = getattr(lora_jax, name)
    if isinstance(value, types.ModuleType):
        return f"{heading(f'lora_jax.{name}', '=')}\n\n{_module(value.__name__)}\n   :no-index:\n"
    if inspect.isclass(value):
        directive, options = "autoclass", ["members", "show-inheritance"]
    else:
        directive, options = "autofunction" if callable(value) else "autodata", []
    lines = [f".. {directive}:: lora_jax.{name}", *(f"   :{each}:" for each in options)]
    return f"{heading(f'lora_jax.{name}', '=')}\n\n" + "\n".join(lines) + "\n"


def _package(package: str) -> str:
    folder = importlib.import_module(package)
    found = [each.name for each in pkgutil.iter_modules(folder.__path__) if not each.ispkg]
    parts = [heading(package, "="), _module(package)]
    for module in found:
        parts += [heading(f"{package}.{module}", "-"), _module(f"{package}.{module}")]
    return "\n\n".join(parts) + "\n"


def _module(name: str) -> str:
    return f".. automodule:: {name}\n   :members:"


def _first_line(value: object) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]
