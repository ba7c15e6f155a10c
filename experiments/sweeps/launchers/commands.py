"""`--launcher=print`: print a shell command for each job, for any scheduler to run."""

import os
import shlex
from collections.abc import Sequence

from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.jobs import How, Job


def lines(todo: Sequence[Job], folder: SweepFolder, how: How = jobs.USUAL) -> list[str]:
    """The quoted shell commands; each can be run from any folder of this machine."""
    where = shlex.quote(os.getcwd())
    return [f"cd {where} && {shlex.join(jobs.command(folder, job, how))}" for job in todo]
