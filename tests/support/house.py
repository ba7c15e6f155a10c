"""How large the project is, next to its budgets: `make lint` prints it, and fails on none of it.

A statement is one of Python's syntax tree; docstrings do not count. An entry is a tracked file or
folder directly in a folder.
"""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATEMENTS = {"code": 38_500, "tests": 39_000}
ENTRIES = {"lora_jax": 23, "experiments": 36, "tests": 37}


def statements(path: Path) -> int:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.stmt) and not is_text(node) for node in nodes)


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is only a text: a docstring."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    tracked = [Path(each) for each in listed.stdout.decode().split("\0") if (ROOT / each).is_file()]
    sizes = dict.fromkeys(STATEMENTS, 0)
    for path in tracked:
        if path.suffix == ".py":
            sizes["tests" if path.parts[0] == "tests" else "code"] += statements(ROOT / path)
    for part, budget in STATEMENTS.items():
        print(f"statements of {part}: {sizes[part]:,} (budget {budget:,})")
    for folder, budget in ENTRIES.items():
        number = len({path.parts[1] for path in tracked if path.parts[0] == folder})
        print(f"entries of {folder}: {number} (budget {budget})")


if __name__ == "__main__":
    main()
