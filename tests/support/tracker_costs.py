"""Print the memory and CPU time of each tracker's processes in a run of three lines.

    PYTHONPATH=. python tests/support/tracker_costs.py

It needs psutil and the trackers' libraries; `make parity` makes an environment with both.
"""

import resource
import tempfile
from pathlib import Path

import psutil

from experiments.tracking import trackers
from experiments.tracking.tracking import Track, Tracking


def main() -> None:
    for name in sorted(trackers.TRACKERS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        with tempfile.TemporaryDirectory() as made:
            memory = _memory(name, Path(made))
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(f"{name}: {memory / 2**20:.0f} MiB, {seconds:.1f} s")


def _memory(name: str, folder: Path) -> int:
    """The bytes of the tracker's processes once it has opened the run."""
    with Tracking(Track((name,)), {0: folder}, {0: {"experiment": "costs"}}) as tracking:
        with tracking.metrics(0, folder, True) as log:
            log.truncate(0)
            for step in (1, 2, 3):
                log.write(step, {"loss": 1 / step})
            tracking.where(0)
            child = next(each for each in psutil.Process().children() if name in each.cmdline())
            processes = [child, *child.children(recursive=True)]
            used = sum(each.memory_info().rss for each in processes)
        tracking.end(0, "completed")
    return used


if __name__ == "__main__":
    main()
