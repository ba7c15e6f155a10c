"""Write the generated pages."""

from pathlib import Path

from docs.generate import api, commands, methods

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "generated"


def write() -> None:
    """Bring `docs/generated/` up to date: Sphinx reads again what has changed only."""
    pages = {
        **{f"methods/{name}": text for name, text in methods.pages()},
        **{f"api/{name}": text for name, text in api.pages()},
        **{f"commands/{name}": text for name, text in commands.pages()},
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in FOLDER.rglob("*.*"):
        if path.relative_to(FOLDER).as_posix() not in pages:
            path.unlink()
