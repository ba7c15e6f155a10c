"""Imports run one way, between packages and between folders; configs are plain data."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "lora_jax": {"variants", "experiments", "configs", "tests"},
    "variants": {"experiments", "configs", "tests"},
    "experiments": {"tests"},
    "configs": {"jax", "jaxlib", "flax", "optax", "lora_jax", "variants", "experiments", "tests"},
}


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_against_the_direction(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        tops = {name.partition(".")[0] for name in imported(path)}
        assert not tops & FORBIDDEN[package], path


def folders(package: str) -> dict[str, set[str]]:
    """The folders of a package, each with those that its files import; files at the top alone."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    place = {name: name.rpartition(".")[0] if name.count(".") > 1 else name for name in modules}
    graph: dict[str, set[str]] = {folder: set() for folder in place.values()}
    for name, folder in place.items():
        for other in imported(ROOT / f"{name.replace('.', '/')}.py") & modules:
            graph[folder] |= {place[other]} - {folder}
    return graph


@pytest.mark.parametrize("package", ["lora_jax", "experiments"])
def test_no_folders_import_each_other_in_a_circle(package):
    graph = folders(package)
    assert any(graph.values())
    list(graphlib.TopologicalSorter(graph).static_order())  # raises, and names the circle


def test_no_variant_imports_another():
    names = {path.stem for path in (ROOT / "variants").glob("*.py")} - {"__init__"}
    for path in (ROOT / "variants").glob("*.py"):
        others = {f"variants.{name}" for name in names}
        assert not imported(path) & others, path


def test_the_check_sees_an_import_against_the_direction(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from variants import lora\n")
    assert {name.partition(".")[0] for name in imported(path)} == {"variants"}
