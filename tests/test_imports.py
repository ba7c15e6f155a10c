"""Imports run one way, between packages and from folder to folder; configs are plain data."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lora_jax

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "lora_jax": {"variants", "experiments", "configs", "benchmarks", "tests"},
    "variants": {"experiments", "configs", "benchmarks", "tests"},
    "experiments": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
    "configs": {"jax", "jaxlib", "flax", "optax", "lora_jax", "variants", "experiments", "tests"},
}

ROOMS = (
    "lora_jax.messages",
    "lora_jax.table",
    "lora_jax.partition",
    "lora_jax.base",
    "lora_jax.files",
    "lora_jax.peft_format",
    "lora_jax.variant",
    "lora_jax.records",
    "lora_jax.quantization",
    "lora_jax.methods",
    "lora_jax.transform",
    "lora_jax.sharding",
    "lora_jax.compiled",
    "lora_jax.adapters",
    "lora_jax.serving",
    "lora_jax.contract",
    "lora_jax.training",
    "lora_jax.models",
    "lora_jax.models.parts",
    "lora_jax.models.families",
    "lora_jax.models.published",
    "lora_jax.interchange",
    "lora_jax.data.examples",
    "lora_jax.data.split",
    "lora_jax.data.task",
    "lora_jax.data.tasks",
    "lora_jax.data.metrics",
    "lora_jax.data.tokenizing",
    "lora_jax.data.sources",
    "lora_jax.data",
    "lora_jax.generation",
    "lora_jax",
    "experiments.command_names",
    "experiments.setup",
    "experiments.approximation",
    "experiments.cli",
    "experiments.tracking",
    "experiments.planning",
    "experiments.runs",
    "experiments.imports",
    "experiments.serving",
    "experiments.sweeps",
    "experiments.sweeps.launchers",
    "experiments.analysis",
    "experiments.sweeps.search",
    "experiments.studies",
    "experiments.reports.tables",
    "experiments.catalogue",
    "experiments.exports",
    "experiments.reports.figures",
    "experiments.reports",
    "experiments",
)
"""Folders, and files at the top that others import, lowest first: each imports only earlier ones.

The last of each package, `lora_jax.__init__` and the commands, is imported by no other.
"""


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


def dotted(path: Path) -> str:
    """The name by which a file is imported: an `__init__` by its folder's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(path: Path) -> str:
    """A file's own name if the order has it, else its folder's."""
    return dotted(path) if dotted(path) in ROOMS else dotted(path.parent / "__init__.py")


def later(room: str, others: set[str]) -> set[str]:
    """Those of the other rooms that are above this one."""
    return others & set(ROOMS[ROOMS.index(room) + 1 :])


@pytest.mark.parametrize("package", ["lora_jax", "experiments"])
def test_every_import_goes_to_an_earlier_room(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    rooms = {dotted(path): room_of(path) for path in paths}
    assert set(rooms.values()) == {room for room in ROOMS if room.partition(".")[0] == package}
    for path in paths:
        used = {rooms[name] for name in imported(path) & rooms.keys()}
        assert not later(room_of(path), used), path


def test_the_order_sees_an_import_of_a_later_room():
    files = ROOT / "lora_jax" / "files"
    assert room_of(files / "atomic.py") == room_of(files / "__init__.py") == "lora_jax.files"
    assert room_of(ROOT / "lora_jax" / "variant.py") == "lora_jax.variant"
    assert room_of(ROOT / "experiments" / "sweep.py") == "experiments"
    assert later("lora_jax.records", {"lora_jax.records", "lora_jax.files"}) == set()
    assert later("lora_jax.files", {"lora_jax.files", "lora_jax.records"}) == {"lora_jax.records"}


def test_no_variant_imports_another():
    names = {path.stem for path in (ROOT / "variants").glob("*.py")} - {"__init__"}
    for path in (ROOT / "variants").glob("*.py"):
        others = {f"variants.{name}" for name in names}
        assert not imported(path) & others, path


def test_the_check_sees_an_import_against_the_direction(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from variants import lora\n")
    assert {name.partition(".")[0] for name in imported(path)} == {"variants"}


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / "lora_jax" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(alias.asname, node.module) for node in block.body for alias in node.names}
    assert len(seen) > 40
    for name, file in seen:
        found = getattr(lora_jax, name)
        assert found is getattr(importlib.import_module(file), name), name
        assert name in dir(lora_jax)
    with pytest.raises(AttributeError, match="'lora_jax' has no attribute 'adapts'"):
        lora_jax.adapts  # noqa: B018


def test_reading_records_imports_no_transform():
    code = (
        "import sys, lora_jax.records.run_record; "
        "print(any(name.startswith('lora_jax.transform') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
