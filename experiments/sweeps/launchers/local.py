"""`--launcher=local`: run jobs in processes on this machine, which end with this process."""

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

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.setup.devices import core_count, cores
from experiments.sweeps import jobs, worker_process
from experiments.sweeps.folder import SweepFolder, locked
from lora_jax.messages import agree, count

SHARE = 4
"""The fewest trials for a CPU core that are worth a start-up and a compilation of their own."""
MOST = 10_000
"""The most processes, as there is a `Slot` for each."""

_TICK = 0.2  # seconds between looks at the processes
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine for one process: environment variables and processor cores."""

    environment: Mapping[str, str]
    cores: tuple[int, ...]
    platform: str = "cpu"


@dataclasses.dataclass(frozen=True)
class _Running:
    job: jobs.Job
    slot: Slot
    process: subprocess.Popen[bytes]


def slots(processes: int | None, trials: int = 1) -> list[Slot]:
    """Divide the machine into a slot for each process.

    By default there is a slot for each accelerator. Without accelerators there is one for each
    core, but only as many as get `SHARE` trials each: cores with trials of their own do not wait
    for one another. The cores are divided among the slots; if there are more slots than cores, some
    slots share a core.

    Args:
      processes: the number of slots, or None for the default.
      trials: the number of trials to train.

    Raises:
      ValueError: JAX finds no device.
    """
    platform, devices = _devices()
    own = cores()
    if platform == "cpu":
        devices = max(1, min(len(own) or core_count(), trials // SHARE))
    shares = _divide(own, processes or devices)
    if platform != "gpu":  # a TPU's chips take one process
        return [Slot({}, share, platform) for share in shares]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices))))
    names = [name for name in visible.split(",") if name]
    return [
        Slot({"CUDA_VISIBLE_DEVICES": names[number % len(names)]}, share, platform)
        for number, share in enumerate(shares)
    ]


def fitted(machine: Sequence[Slot], count: int) -> list[Slot]:
    """The slots for so many jobs: if there are fewer jobs than slots, they share all the cores."""
    if not 0 < count < len(machine):
        return list(machine)
    own = sorted({core for slot in machine for core in slot.cores})
    shares = _divide(own, count)
    return [
        dataclasses.replace(slot, cores=share) for slot, share in zip(machine, shares, strict=False)
    ]


def announce(machine: Sequence[Slot], jobs: int) -> None:
    """Print what the processes of so many jobs compute on; this process keeps off the devices."""
    print(f"devices: {described(fitted(machine, jobs))}", file=sys.stderr)


def described(machine: Sequence[Slot]) -> str:
    """What the processes compute on, in one line: `2 processes on GPU 0, GPU 1`."""
    gpus = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in machine if slot.environment]
    shares = sorted({len(slot.cores) for slot in machine})
    where = ", ".join(f"GPU {each}" for each in dict.fromkeys(gpus))
    if not where:
        where = f"the {machine[0].platform.upper()}"
        if any(shares):  # macOS says of no process which cores it has
            own = agree(max(shares), "core", "cores")
            where += f", with {' or '.join(map(str, shares))} {own} each"
    return f"{count(len(machine), 'process', 'processes')} on {where}"


def _devices() -> tuple[str, int]:
    """JAX's platform and the number of devices to start processes for.

    The number is 1 for CPUs, and for TPUs, as one process uses all of them. A separate process asks
    JAX, which would take the memory of the first device in this one.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "cpu", 1
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"JAX finds no device: {last}")
    platform, count = done.stdout.split()[-2:]
    return platform, int(count) if platform == "gpu" else 1


def _divide(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Divide the cores into `count` parts of nearly equal size.

    If there are fewer cores than parts, each part is one core, and parts share cores.
    """
    if not cores:
        return [()] * count
    if count >= len(cores):
        return [(cores[number % len(cores)],) for number in range(count)]
    ends = [len(cores) * number // count for number in range(count + 1)]
    return [tuple(cores[start:end]) for start, end in itertools.pairwise(ends)]


class Terminated(KeyboardInterrupt):
    """This process got SIGTERM; its workers save their steps before they end."""


def launch(
    todo: Sequence[jobs.Job],
    folder: SweepFolder,
    machine: Sequence[Slot],
    watch: Callable[[], None],
    command: Callable[[SweepFolder, jobs.Job], list[str]] = jobs.command,
    whole: bool = False,
) -> None:
    """Run all jobs, one at a time in each slot, and return when all have ended.

    With fewer jobs than slots, no core is left idle (`fitted`).

    If a process dies, the trials that it was training are noted as killed. The other trials of its
    job get a new process. When this function ends, even with an error, it ends the processes too:
    with `Terminated`, by SIGTERM, which lets them save; otherwise at once.

    Args:
      watch: called often, to show the progress of the trials.
      command: gives the command line that trains a job.
      whole: whether a job trains with all of its trials only, so that none gets a new process.
    """
    worker_process.allow_files()
    waiting, free, running = deque(todo), fitted(machine, len(todo)), list[_Running]()
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
                rest = settle(each.job, folder, each.process.pid, each.process.returncode)
                if rest and not whole:
                    waiting.appendleft(rest)
        watch()
    except Terminated:
        for each in running:
            each.process.terminate()
        for each in running:
            each.process.wait()  # what saved stays `interrupted`, and goes on the next time
        raise
    finally:
        for each in running:
            each.process.kill()
        for each in running:
            each.process.wait()
            _close(each)


def _start(
    job: jobs.Job,
    slot: Slot,
    folder: SweepFolder,
    command: Callable[[SweepFolder, jobs.Job], list[str]],
) -> _Running:
    log = folder.log(job[0].name)
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [*command(folder, job), "--leash"]
    if slot.cores:
        line.append(f"--cores={','.join(map(str, slot.cores))}")
    with log.open("ab") as output:
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,  # end of file tells it that this process has died
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the others
        )
    return _Running(job, slot, process)


def _close(each: _Running) -> None:
    if each.process.stdin is not None:
        with contextlib.suppress(OSError):
            each.process.stdin.close()


def settle(job: jobs.Job, folder: SweepFolder, process: int, code: int, said: str = "") -> jobs.Job:
    """Note the killed trials of a job whose process has ended, and return its remaining trials.

    Args:
      process: its id; 0 if no process has begun. A trial that never began has 0, too.
      said: what ended the process, where its exit code does not say it.
    """
    states = [(trial, folder.state(trial)) for trial in job]
    begun = [trial for trial, state in states if process and state.process == process]
    victims = [
        trial
        for trial, state in states
        if state.process == process and state.status in ("running", "interrupted")
    ]
    left = [
        trial
        for trial, state in states
        if trial not in begun
        and state.status not in ("completed", "diverged", "stopped")
        and not locked(folder.lock_file(trial.name))  # another process trains it
    ]
    if not victims and left:
        victims = [left.pop(0)]  # else a process that cannot begin would restart for ever
    note = f"{said or cause(code, len(victims) - 1)}; {folder.log(job[0].name)}"
    for trial in victims:
        folder.end(trial.name, "killed", note, process)
    return left


def cause(code: int, others: int) -> str:
    """What ended a process that trained a trial and so many others, by its exit code."""
    trials = "another trial" if others == 1 else f"{others} other trials"
    which = f"its process, one with {trials}," if others else "its process"
    if code == TEMPORARY_FAILURE:
        return f"{which} was asked to end by SIGTERM, and saved where it was"
    if code >= 0:
        return f"{which} ended with code {code}"
    memory = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"{which} was ended by {signal.Signals(-code).name}{memory}"
