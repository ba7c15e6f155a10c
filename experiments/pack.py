"""Pack the finished runs of a folder into a few files, which every command reads as their folders.

    python -m experiments.pack --results=runs/against_lora
    python -m experiments.pack --unpack=runs/against_lora/cola/runs/lora/0

The runs of a registered study go into three files beside its `study.json`, and other runs into the
folder that is given: `runs.records.jsonl.gz`, `runs.metrics.jsonl.gz` and `runs.predictions.npz`.
Records keep their seals and lines of metrics their checks. A run's folder is deleted when what is
packed of it has been read back and compared. Runs that have not ended stay as they are, and so do
those that hold more than results, such as an adapter or checkpoints, and the runs of a sweep.

--unpack makes folders again of the runs in and below a folder, or of one run. A run can be trained
further, and a study continued, only in folders.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.runs import packing

_RESULTS = flags.DEFINE_string("results", None, "The folder with the runs below it to pack.")
_UNPACK = flags.DEFINE_string(
    "unpack", None, "The folder of packed runs to unpack, or that of one such run."
)


def pack() -> None:
    if (_RESULTS.value is None) == (_UNPACK.value is None):
        raise ValueError("give one of --results, to pack runs, and --unpack")
    change = packing.pack_below if _UNPACK.value is None else packing.unpack_below
    for line in change(Path(str(_RESULTS.value or _UNPACK.value))):
        print(line)


if __name__ == "__main__":
    cli.main(pack)
