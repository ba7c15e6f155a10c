"""Write the generated pages."""

from pathlib import Path

from docs.generate import api, commands, methods, strangers

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "generated"


OF_THE_ROOT = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
"""Files of the repository that are pages of the site, too."""


def of_the_root(name: str) -> str:
    """A file of the repository as a page of `docs/generated`, from where its links lead on."""
    text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](../")


def write() -> None:
    """Bring `docs/generated/` up to date: Sphinx reads again what has changed only."""
    pages = {
        **{f"methods/{name}": text for name, text in methods.pages()},
        **{f"api/{name}": text for name, text in api.pages()},
        **{f"commands/{name}": text for name, text in commands.pages()},
        **dict(strangers.pages()),
        **{f"{name.lower()}.md": of_the_root(name) for name in OF_THE_ROOT},
    }
    for name, text in pages.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in FOLDER.rglob("*.*"):
        if path.relative_to(FOLDER).as_posix() not in pages:
            path.unlink()
