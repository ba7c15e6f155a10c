"""Train what a config describes.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/lora \
        --config.variant.rank=16

The same command goes on where a killed run stopped.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.run import run

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the record, metrics and checkpoints.")


def train() -> None:
    record = run(_CONFIG.value.to_dict(), Path(str(_WORKDIR.value)))
    scores = ", ".join(f"{name} {value:.4g}" for name, value in record.metrics_last.items())
    print(f"{record.status} after {record.steps} steps: {record.note or scores}")
    print(f"{record.parameters_trained:,} of {record.parameters_total:,} parameters trained")
    print(f"record and adapter: {_WORKDIR.value}")
    if record.status != "completed":
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(train)
