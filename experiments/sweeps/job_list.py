"""The file with the jobs of a launcher whose workers know only their number.

`{"version": 1, "jobs": [["seed=0", "seed=1"], ["seed=2"]]}`: the names of the trials of each job.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically

VERSION = 1


def write(path: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Write the names of the trials of each job."""
    text = json.dumps({"version": VERSION, "jobs": [list(each) for each in jobs]}, indent=2)
    write_atomically(path, f"{text}\n".encode())


def read(path: Path, number: int) -> list[str]:
    """The names of the trials of one job, which are at least one.

    Raises:
      ValueError: the file is no such list, or has no job of this number.
      OSError: the file cannot be read.
    """
    found = json_text.read_object(path)
    jobs = found.get("jobs")
    if found.get("version") != VERSION or not isinstance(jobs, list) or not all(map(_is_job, jobs)):
        raise ValueError(f"--jobs={path} is no list of jobs, as --launcher=kubernetes writes it")
    if not 0 <= number < len(jobs):
        raise ValueError(f"--job={number}: {path} has the jobs 0 to {len(jobs) - 1}")
    return jobs[number]


def _is_job(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
