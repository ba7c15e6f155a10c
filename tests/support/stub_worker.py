"""Stands in for the worker: no training, and mishaps by the seed of the trial's name."""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.sweeps import worker_process

parser = argparse.ArgumentParser()
parser.add_argument("--workdir", type=Path)
parser.add_argument("--trial", action="append", default=[])
parser.add_argument("--lock_wait")
parser.add_argument("--leash", action="store_true")
parser.add_argument("--cores", default="")
arguments = parser.parse_args()
if arguments.leash:
    worker_process.end_with(sys.stdin.fileno())


def note(name, status, note=""):
    path = arguments.workdir / "outcomes" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"status": status, "note": note, "process": os.getpid()}))


for name in arguments.trial:
    if "seed=5" in name:
        raise ImportError("no such thing")
    note(name, "running")
    if "seed=1" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "seed=9" in name:
        time.sleep(600)
    with (arguments.workdir / "calls").open("a") as calls:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        calls.write(f"{json.dumps([name, os.getpid(), arguments.cores, visible])}\n")
    if "seed=2" not in name:  # the contract has made the records
        made, folder = arguments.workdir / "records" / name, arguments.workdir / "trials" / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "record.json", folder)
    note(name, *(("failed", "ValueError: so it is") if "seed=2" in name else ("completed",)))
sys.exit(any("seed=2" in name for name in arguments.trial))
