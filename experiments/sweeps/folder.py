"""The folder of a sweep: its list of trials, their states, and the processes that train them.

trials.json             every trial so far: flags, overrides, digest
trials/NAME/            the run's folder, as from `experiments.train`: config, metrics, record
outcomes/NAME.json      the newest attempt: running, or how it ended
logs/NAME.log           what a process printed, named after its first trial
slurm/                  submitit's files
locks/                  locks of working processes; the system frees them when a process dies
"""

import contextlib
import dataclasses
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.setup.config import fill
from experiments.setup.config_flags import read_config
from experiments.sweeps.trials import Trial
from lora_jax.files import json_text
from lora_jax.messages import require_known, said
from lora_jax.records import run_record, seal


class LockedError(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; the system frees it when the process dies.

    Args:
      shared: take a shared lock, which other shared locks allow.
      wait: the seconds to wait for the lock.

    Raises:
      LockedError: another process holds it; the message names the process.
      OSError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise LockedError(f"{holder} is working on {path.parent.parent}") from None
            except OSError as error:
                raise OSError(
                    f"{path.parent.parent}: the file system has no locks ({error.strerror}), and "
                    "two processes could train one trial; docs/guides/launchers.md says which has"
                ) from error
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def locked(path: Path) -> bool:
    """Whether a process holds the exclusive lock of a file; this holds the lock only to test it."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


ENDED = ("completed", "failed", "diverged", "killed", "stopped")
_RECORDED = ("completed", "diverged", "stopped")  # noted only after the record was written
VERSION = 1
_WITHOUT = "delete this file, and the trial's folder says how it ended"


@dataclasses.dataclass(frozen=True)
class TrialState:
    """The state of a trial.

    A `waiting` trial has never begun. A `running` one is locked by a process. An `interrupted` one
    was running in a process that is gone. A `killed` one ended with its process. A `stopped` one
    was taken out by successive halving. A `lost` one has ended, but its record cannot be read: it
    is to be trained again. `note` says why a trial failed, diverged, was stopped or is lost.
    """

    status: str
    note: str = ""
    process: int = 0
    """The process id of the newest attempt."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """The paths below a sweep's --workdir, and the contents of its files."""

    path: Path

    def run(self, name: str) -> Path:
        """The folder of a trial's run."""
        return self.path / "trials" / name

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def _state_file(self, name: str) -> Path:
        return self.path / "outcomes" / f"{name}.json"

    def lock_file(self, name: str) -> Path:
        """The lock file of a trial, which the process that trains it holds."""
        return self.path / "locks" / f"{name}.lock"

    def begin(self, name: str) -> None:
        """Note that this process has begun a trial."""
        self.end(name, "running")

    def end(self, name: str, status: str, note: str = "", process: int | None = None) -> None:
        """Note how an attempt ended, by default one of this process."""
        state = TrialState(status, note, os.getpid() if process is None else process)
        seal.write(self._state_file(name), dataclasses.asdict(state))

    def state(self, trial: Trial) -> TrialState:
        """The state of a trial; a completed record takes precedence over all other files.

        Only a record that can be read says that a trial completed, diverged or was stopped.
        """
        ended, attempt = self._recorded(trial), None
        if ended is None or ended.status != "completed":
            attempt = self.attempt(trial.name)
        if attempt is None:
            return ended or TrialState("waiting")
        if attempt.status in _RECORDED:
            gone = f"it was {attempt.status}, and its record.json is gone"
            ended = self._recorded(trial) or TrialState("lost", gone)  # read again: it may be new
        elif ended is None or ended.status != "lost":  # nothing trains beside a damaged record
            return attempt
        return dataclasses.replace(ended, process=attempt.process)

    def _recorded(self, trial: Trial) -> TrialState | None:
        """The state of a trial by its record alone; None if there is no record."""
        path = self.run(trial.name)
        try:
            record = run_record.read(path)
        except ValueError as error:
            return TrialState("lost", f"{said(error)}; delete this file to train the trial again")
        if record is not None and record.config_digest != trial.digest:
            return TrialState("failed", f"{path} holds a run of another configuration")
        return None if record is None else TrialState(record.status, record.note)

    def attempt(self, name: str) -> TrialState | None:
        """The newest attempt at a trial, whatever its record says; None if it never began."""
        if not (path := self._state_file(name)).exists():
            return None
        try:
            found, written = seal.opened(json_text.read_object(path))
            seal.require_unchanged(found, written)
            attempt = TrialState(**found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): {_WITHOUT}") from None
        if attempt.status != "running" or locked(self.lock_file(name)):
            return attempt
        return dataclasses.replace(attempt, status="interrupted")

    def trial(self, name: str) -> Trial:
        """A trial of the list, with its config built again from its flags.

        Raises:
          ValueError: no such trial, or its config has changed since the list was written.
        """
        entry = self.require([name])[name]
        arguments = tuple(entry["arguments"])
        trial = Trial(name, arguments, entry["overrides"], fill(read_config(arguments).to_dict()))
        if trial.digest != entry["digest"]:
            raise ValueError(
                f"{name}: {arguments[0].removeprefix('--config=')} makes another config than "
                "when the sweep was started; give the sweep's command again"
            )
        return trial

    def require(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All entries of the list by name; raise a ValueError if one of `names` is not there."""
        listed = {each["name"]: each for each in self._listed()}
        for name in names:
            require_known(name, listed, f"{self.path / 'trials.json'} has no trial '{name}'")
        return listed

    def _listed(self) -> list[dict[str, Any]]:
        path = self.path / "trials.json"
        if not path.exists():
            return []
        try:
            found = json_text.loads(path.read_bytes(), "it")
            if not isinstance(found, dict) or found.get("version") != VERSION:
                raise ValueError("of another version")
            found, written = seal.opened(found)
            seal.require_unchanged(found, written)
            entries = found.get("trials")
            if not isinstance(entries, list):
                raise ValueError("it holds something else")
        except ValueError as error:
            raise ValueError(f"{path} is not a list of trials: {error}") from error
        return entries

    def known(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials, with the names that the list already has for their configs.

        Raises:
          ValueError: a new trial's name is that of another trial, or of another config's folder.
        """
        names = {each["digest"]: each["name"] for each in self._listed()}
        renamed = []
        for trial in trials:
            if name := names.get(trial.digest):
                trial = dataclasses.replace(trial, name=name)
            elif (self.run(trial.name) / "config.json").exists():
                run_record.claim(self.run(trial.name), trial.plain)
            renamed.append(trial)
        taken = [trial.name for trial in renamed]
        if twice := [name for name in dict.fromkeys(taken) if taken.count(name) > 1]:
            raise ValueError(
                f"{self.path} has another trial '{twice[0]}' already; name another --workdir"
            )
        return renamed

    def write_list(self, trials: Sequence[Trial]) -> None:
        """Add trials to `trials.json`; a trial replaces an unbegun one of the same name."""
        with lock(self.path / "locks" / "list", wait=60):
            entries = {
                trial.name: {
                    "name": trial.name,
                    "digest": trial.digest,
                    "overrides": trial.overrides,
                    "arguments": list(trial.arguments),
                }
                for trial in trials
            }
            before = self._listed()
            merged = list(({each["name"]: each for each in before} | entries).values())
            if merged != before:
                values = {"version": VERSION, "trials": merged}
                seal.write(self.path / "trials.json", values)

    def require_sweep_or_empty(self) -> None:
        """Raise a ValueError if the path is a file, or a folder with other content than a sweep."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--workdir {self.path} is a file: name a folder")
        names = {each.name for each in self.path.iterdir()} if self.path.exists() else set()
        if names - {"locks"} and not names & {"trials.json", "trials", "search.json"}:
            raise ValueError(
                f"--workdir {self.path} holds {min(names)} but no trials.json: name a new or empty "
                "folder, or that of a sweep"
            )

    @contextlib.contextmanager
    def held(self, shard: tuple[int, int] | None) -> Iterator[None]:
        """Hold the lock of a shard, or of the whole sweep if `shard` is None.

        Raises:
          LockedError: another process holds it, or a lock that conflicts with it.
        """
        locks, own = self.path / "locks", contextlib.nullcontext()
        if shard is not None:
            own = lock(locks / f"shard-{shard[0]}-of-{shard[1]}")
        with lock(locks / "sweep", shared=shard is not None), own:
            yield
