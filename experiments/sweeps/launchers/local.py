"""`--launcher=local`: processes on this machine, none of which outlives this one."""

import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from experiments.runs.run import TEMPORARY_FAILURE
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder, locked
from experiments.sweeps.jobs import Job
from experiments.sweeps.trials import Trial

SHARE = 4
"""How many trials of a CPU's core are worth a start-up and a compilation of their own."""
MOST = 10_000
"""Processes, of each of which a part of the machine is noted."""
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}
"""XLA gives large buffers back to the system after every step; with these, glibc keeps them."""

_TICK = 0.2  # seconds between looks at the processes
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"


@dataclasses.dataclass(frozen=True)
class Slot:
    """What a process gets of the machine: environment variables and processor cores."""

    environment: Mapping[str, str]
    cores: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Running:
    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]


def slots(processes: int | None, trials: int = 1) -> list[Slot]:
    """So many parts of the machine; by default one for each accelerator.

    Without one, by default, a part for each core, as far as there are `SHARE` trials for it: cores
    that each step through their own trials do not wait for one another. The cores are divided
    among the parts; more processes than cores share theirs.

    Args:
      trials: how many there are to train.

    Raises:
      ValueError: fewer than one process, or JAX finds no device.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"--processes must be positive, got {processes}")
    if processes is not None and processes > MOST:
        raise ValueError(f"--processes must be at most {MOST:,}, got {processes:,}")
    platform, devices = _devices()
    cores = _cores()
    if platform == "cpu":
        devices = max(1, min(len(cores), trials // SHARE))
    shares = _divide(cores, processes or devices)
    if platform == "cpu":
        return [Slot(KEEP_MEMORY, share) for share in shares]
    if platform != "gpu":  # a TPU's chips take one process
        return [Slot({}, share) for share in shares]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices))))
    names = [name for name in visible.split(",") if name]
    return [
        Slot({"CUDA_VISIBLE_DEVICES": names[number % len(names)]}, share)
        for number, share in enumerate(shares)
    ]


def _devices() -> tuple[str, int]:
    """JAX's platform and its devices; one of CPUs, and of TPUs, which one process drives.

    Asked in a process of its own: here, JAX would take the memory of the first device.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "cpu", 1
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"JAX finds no device: {last}")
    platform, count = done.stdout.split()[-2:]
    return platform, int(count) if platform == "gpu" else 1


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def _divide(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """The cores in `count` parts as equal as can be; where too few, parts of one that are alike."""
    if not cores:
        return [()] * count
    if count >= len(cores):
        return [(cores[number % len(cores)],) for number in range(count)]
    ends = [len(cores) * number // count for number in range(count + 1)]
    return [tuple(cores[start:end]) for start, end in itertools.pairwise(ends)]


def launch(
    todo: Sequence[Job],
    folder: SweepFolder,
    machine: Sequence[Slot],
    watch: Callable[[], None],
    command: Callable[[SweepFolder, Job], list[str]] = jobs.command,
) -> None:
    """Run all jobs, as many at a time as there are slots; returns when all have ended.

    A process that dies takes the trial with it that it was training, which is noted; the others of
    its job go to a process of their own. Whatever ends this function ends the processes too.

    Args:
      watch: called often, to show how far the trials are.
      command: what trains a job.
    """
    waiting, free, running = deque(todo), list(machine), list[_Running]()
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.popleft(), free.pop(0), folder, command))
            watch()
            time.sleep(_TICK)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                free.append(each.slot)
                _close(each)
                if rest := settle(each.job, folder, each.process.pid, each.process.returncode):
                    waiting.appendleft(rest)
        watch()
    finally:
        for each in running:
            each.process.kill()
        for each in running:
            each.process.wait()
            _close(each)


def _start(
    job: Job, slot: Slot, folder: SweepFolder, command: Callable[[SweepFolder, Job], list[str]]
) -> _Running:
    log = folder.log(job[0].name)
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [*command(folder, job), "--leash"]
    if slot.cores:
        line.append(f"--cores={','.join(map(str, slot.cores))}")
    with log.open("ab") as output:
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,  # whose end tells the process that this one has died
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        )
    return _Running(job, slot, process)


def _close(each: _Running) -> None:
    if each.process.stdin is not None:
        with contextlib.suppress(OSError):
            each.process.stdin.close()


def settle(job: Job, folder: SweepFolder, process: int, code: int) -> Job:
    """Note what became of a job whose process has ended; returns the trials that it left undone."""
    outcomes = [(trial, folder.outcome(trial)) for trial in job]
    begun = [trial for trial, outcome in outcomes if outcome.process == process]
    victims = [
        trial
        for trial, outcome in outcomes
        if outcome.process == process and outcome.status in ("running", "interrupted")
    ]
    left = [
        trial
        for trial, outcome in outcomes
        if trial not in begun
        and outcome.status not in ("completed", "diverged")
        and not locked(folder.lock(trial.name))  # somebody else's
    ]
    if not victims and left:
        victims = [left.pop(0)]  # or a process that cannot even begin would be started for ever
    note = f"{_cause(code, len(victims) - 1)}; {_last_line(folder, job[0])}"
    for trial in victims:
        folder.end(trial.name, "killed", note, process)
    return left


def _cause(code: int, others: int) -> str:
    trials = "another trial" if others == 1 else f"{others} other trials"
    which = f"its process, one with {trials}," if others else "its process"
    if code == TEMPORARY_FAILURE:
        return f"{which} was asked to end by SIGTERM, and saved where it was"
    if code >= 0:
        return f"{which} ended with code {code}"
    memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"{which} was ended by {signal.Signals(-code).name}{memory}"


def _last_line(folder: SweepFolder, first: Trial) -> str:
    """Where its log is and, if it said anything, its last words."""
    log = folder.log(first.name)
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines and "rror" in lines[-1]:
            return f"{lines[-1].strip()[:200]} ({log})"
    return str(log)
