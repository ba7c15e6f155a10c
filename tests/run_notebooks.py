"""Execute every notebook from top to bottom; an error in any cell fails.

python tests/run_notebooks.py [--write]    (--write keeps the outputs in the files)
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"

for path in sorted(FOLDER.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    if "--write" in sys.argv:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, which differ every time
        nbformat.write(notebook, path)
    print(f"{path.name}: {len(notebook.cells)} cells ran")
