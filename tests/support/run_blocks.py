"""Run the Python blocks of pages, each page in a namespace and a folder of its own.

    python tests/support/run_blocks.py BLOCKS.json

The file has a list of [page, line, code]. An error is printed with its traceback, whose lines are
those of the page; the other pages are run all the same.
"""

import json
import os
import sys
import tempfile
import traceback
from itertools import groupby
from pathlib import Path

import jax

# As users have them, not as the tests do.
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_numpy_rank_promotion", "allow")


def run(blocks: list[tuple[str, int, str]]) -> bool:
    """Whether all blocks of a page run, one after the other."""
    names = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for page, line, code in blocks:
            try:
                exec(compile("\n" * (line - 1) + code, page, "exec"), names)
            except Exception:
                print(traceback.format_exc().rpartition("File")[2], file=sys.stderr)
                print(f"{page}:{line}: the block fails", file=sys.stderr)
                return False
    return True


if __name__ == "__main__":
    root = os.getcwd()
    sys.path.insert(0, root)
    pages = groupby(json.loads(Path(sys.argv[1]).read_text()), key=lambda block: block[0])
    ran = [(run(list(blocks)), os.chdir(root))[0] for _, blocks in pages]
    sys.exit(not all(ran))
