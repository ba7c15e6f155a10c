"""Execute notebooks from top to bottom; an error in any cell fails.

python tests/docs/run_notebooks.py [--size=full|smoke] [--folder=notebooks] [NAME ...]

NAME is the beginning of a file's name, such as 05; by default all notebooks run. The full size
takes minutes for each and keeps the outputs in the files. A notebook that takes longer than a
reader waits fails then, after all have run. The smoke size takes seconds, and leaves the files as
they are.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
READER_WAITS = 180
"""The most seconds of a notebook at full size."""
SIZE = "NOTEBOOK_SIZE"
"""The environment variable that a notebook's first code cell reads."""
LONGEST = 1800
"""The most seconds of a cell, on a machine that has other work."""
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""XLA's flags for the smoke size, at which programs take longer to compile than to run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("full", "smoke"), default="full")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args()
    names = asked.names or [""]
    paths = [p for p in sorted(asked.folder.glob("*.ipynb")) if p.name.startswith(tuple(names))]
    if missing := [n for n in names if not any(p.name.startswith(n) for p in paths)]:
        parser.error(f"no notebook in {asked.folder} begins with {missing[0]}")
    os.environ[SIZE] = asked.size
    if asked.size == "smoke":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    slow = []
    for path in paths:
        begun = time.perf_counter()
        cells = execute(path, keep=asked.size == "full")
        seconds = time.perf_counter() - begun
        print(f"{path.name}: {cells} cells in {seconds:.0f} s", flush=True)
        if asked.size == "full" and seconds > READER_WAITS:
            slow.append(f"{path.name} ({seconds:.0f} s)")
    if slow:
        sys.exit(f"longer than {READER_WAITS} s, the most for a notebook: {', '.join(slow)}")


def execute(path: Path, keep: bool) -> int:
    """Run a notebook in a kernel of its own, and `keep` its outputs in the file.

    Returns:
      The number of its cells.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=LONGEST, resources=where).execute()
    if keep:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, which differ every time
        nbformat.write(notebook, path)
    return len(notebook.cells)


if __name__ == "__main__":
    main()
