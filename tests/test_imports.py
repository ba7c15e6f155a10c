"""Imports run one way: lora_jax <- variants <- experiments, and configs are plain data."""

import ast
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


def test_no_variant_imports_another():
    names = {path.stem for path in (ROOT / "variants").glob("*.py")} - {"__init__"}
    for path in (ROOT / "variants").glob("*.py"):
        others = {f"variants.{name}" for name in names}
        assert not imported(path) & others, path


def test_the_check_sees_an_import_against_the_direction(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from variants import lora\n")
    assert {name.partition(".")[0] for name in imported(path)} == {"variants"}
