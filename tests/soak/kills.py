"""Commands that are killed at drawn moments and given again, and results compared bit by bit."""

import atexit
import dataclasses
import functools
import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import commands
import numpy as np
import small_study

from experiments.runs import predictions
from lora_jax.files.json_text import config_digest, numbers, plain
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

RECORDED = (
    *("experiment", "seed", "data_digest", "weights_digest", "rule", "metric", "samples"),
    *("parameters_trained", "parameters_total", "parameters_adapters", "ranks", "signatures"),
    *("metrics_best", "metrics_last", "metrics_first", "steps", "best_step", "status"),
)
"""The fields of a record that do not depend on time, memory or the machine's state."""
TRIES = 4
"""How often a command is given after its kills; a killed worker's trial waits for the next one."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
Result = dict[str, Any]
"""What is compared: JSON values by name."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A command that works in a folder, and what is compared of it."""

    line: Callable[[Path], list[str]]
    result: Callable[[Path], Result]
    has_workers: bool = False


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A command without kills: its result, its seconds, and how often it changes a file."""

    result: Result
    seconds: float
    changes: int


def works(inputs: Path, run: Path) -> dict[str, Work]:
    """The commands that are killed; `run` is a finished run, which is exported."""

    def export(form: str) -> Work:
        def line(folder: Path) -> list[str]:
            return small_study.export(run, folder / "out", (f"--as={form}",))

        return Work(line, exported)

    return {
        "train": Work(lambda folder: small_study.train(inputs, folder / "run"), all_results),
        "export-peft": export("peft"),
        "export-merged": export("merged"),
        "tune": Work(lambda folder: small_study.tune(inputs, folder / "study"), all_results),
        "sweep": Work(
            lambda folder: small_study.sweep(inputs, folder / "sweep"), all_results, True
        ),
    }


def all_results(folder: Path) -> Result:
    """The results of all finished runs below a folder, by their place in it.

    The digest of a study's registration does not count: it holds the time of its first command.
    """
    return {
        f"{path.parent.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("record.json"))
        for name, value in run_results(path.parent).items()
    }


def run_results(folder: Path) -> Result:
    """The record, metrics, predictions and arrays in a run's folder; empty if it has no record.

    Raises:
      ValueError: a file is damaged.
    """
    sealed = run_record.read_sealed(folder)
    if sealed is None:
        return {}
    record, has_seal = sealed
    config = {**record.config, "study": {**(record.config.get("study") or {}), "registration": ""}}
    evaluations = [numbers(each) for each in record.evaluations or ()]
    found: Result = {
        "record": {name: getattr(record, name) for name in RECORDED},
        "config": config,
        "evaluations": [[each["step"], each["score"]] for each in evaluations],
        "metrics": read_metrics(folder / "metrics.jsonl", has_seal, record.metrics_check),
    }
    for part, arrays in predictions.read(folder).items():
        found[f"predictions of {part}"] = [array(each) for each in arrays if each is not None]
    for path in sorted(folder.glob("*.safetensors")):
        file = SafetensorsBytes(path)
        found[path.name] = {name: array(file.read(name)) for name in file.names()}
    return plain(found)


def exported(folder: Path) -> Result:
    """Digests of all files of an export but its card, which quotes the command."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "README.md"
    }


def array(value: Any) -> list[Any]:
    """The type, the shape and a digest of the bytes of an array."""
    value = np.ascontiguousarray(value)
    return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The names of what differs between two results; empty if they are the same."""

    def digest(found: Mapping[str, Any], name: str) -> str:
        return config_digest({"value": found[name]}) if name in found else "missing"

    names = dict.fromkeys([*one, *other])
    return ", ".join(name for name in names if digest(one, name) != digest(other, name))


def watch_changes(below: Path, kill_at: int, count: Path | None) -> None:
    """Count the changes of files below a folder from now on, in this process.

    Args:
      kill_at: the number of the change, from 1 on, before which the process is killed; 0 for none.
      count: a file that gets the number of changes when the process ends.
    """
    changes = 0

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            _, mode, flags = given
            text = isinstance(mode, str) and any(each in mode for each in "wax+")
            if not text and not (mode is None and (flags or 0) & WRITES):
                return
        elif event not in CHANGES:
            return
        path = given[0]
        if isinstance(path, str | bytes | os.PathLike) and str(below) in os.fsdecode(path):
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if count is not None:
        atexit.register(lambda: count.write_text(str(changes), encoding="ascii"))


def start(line: list[str], below: Path, kill_at: int = 0, count: Path | None = None) -> Any:
    """Start a command in whose process changes of files are watched."""
    before = functools.partial(watch_changes, below, kill_at, count)
    return commands.Started(*line, before=before)


def undisturbed(work: Work, folder: Path) -> Undisturbed:
    """A command without kills, twice: the first time, programs are compiled.

    Raises:
      RuntimeError: it fails, or gives two results.
    """
    found: list[Undisturbed] = []
    for number in range(2):
        own = folder / str(number)
        own.mkdir(parents=True)
        began = time.monotonic()
        ended = start(work.line(own), own, count=folder / "changes").end()
        seconds = time.monotonic() - began
        if ended.returncode:
            raise RuntimeError(f"it fails without a kill: {ended.stderr}")
        changes = int((folder / "changes").read_text(encoding="ascii"))
        found.append(Undisturbed(work.result(own), seconds, changes))
    first, second = found
    if not first.result or (differs := difference(first.result, second.result)):
        raise RuntimeError(f"without a kill, there are two results or none: {differs}")
    return second


def kill(work: Work, whole: Undisturbed, folder: Path, drawn: random.Random) -> str:
    """Start a command, kill it at a drawn moment, and say which; empty if it had ended before."""
    of_worker = work.has_workers and drawn.random() < 0.5
    by_change, at = drawn.random() < 0.5, drawn.random()
    if by_change and not of_worker:
        number = 1 + int(at * whole.changes)
        ended = start(work.line(folder), folder, kill_at=number).end()
        return f"change {number}" if ended.returncode == -signal.SIGKILL else ""
    started = start(work.line(folder), folder)
    started.process.join(at * whole.seconds)
    if not started.running:
        started.end()
        return ""
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children")
    if of_worker and (workers := children.read_text(encoding="ascii").split()):
        os.kill(int(workers[-1]), signal.SIGKILL)
        started.end()
        return f"worker at {at * whole.seconds:.2f} s"
    started.kill()
    return f"{at * whole.seconds:.2f} s"


def go_on(work: Work, whole: Undisturbed, folder: Path) -> str:
    """Give a command again until it ends, and say what is wrong with its end or its result."""
    said = ""
    for _ in range(TRIES):
        ended = start(work.line(folder), folder).end()
        differs = difference(whole.result, work.result(folder))
        if ended.returncode == 0:
            return f"differs in {differs}" if differs else ""
        if not differs and not work.has_workers:
            return ""  # an export refuses to replace what is there, which is whole
        said = ended.stderr.strip().splitlines()[-1]
    return f"does not end: {said}"


def rounds(
    name: str, work: Work, kills: int, seed: int, scratch: Path
) -> Iterator[tuple[str, bool]]:
    """Kill a command so many times; yield a line for each round, and whether it is good."""
    if not kills:
        return
    whole = undisturbed(work, scratch / "undisturbed")
    done, number = 0, 0
    while done < kills and number < 5 * kills:
        number += 1
        drawn = random.Random(f"{seed} {name} {number}")
        folder = scratch / f"round-{number}"
        folder.mkdir(parents=True)
        count = min(drawn.randint(1, 3), kills - done)
        met = list(filter(None, [kill(work, whole, folder, drawn) for _ in range(count)]))
        done += len(met)
        problem = go_on(work, whole, folder)
        if not problem:
            shutil.rmtree(folder)
        moments = ", ".join(met) or "no time"
        yield f"{name}: killed at {moments}: {problem or 'the same bits'}", not problem
