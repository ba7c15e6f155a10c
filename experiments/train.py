r"""Train what a config describes.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/lora \
        --config.variant.rank=16

The same command goes on where a killed run stopped.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.run import run, summarise

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the record, metrics and checkpoints.")


def train() -> None:
    record = run(_CONFIG.value.to_dict(), Path(str(_WORKDIR.value)))
    for line in summarise(record):
        print(line)
    completed = record.status == "completed"
    print(f"{'record and adapter' if completed else 'record'}: {_WORKDIR.value}")
    if not completed:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(train)
