"""Write the record of each trial of a program when it ends, and the files that it leaves."""

import contextlib
import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from experiments.runs import artifacts
from experiments.runs.folder_lock import HeldFolder
from experiments.runs.group import Group
from experiments.runs.rungs import Decision, of_trial
from experiments.setup import processes
from experiments.setup.experiment import Experiment
from experiments.tracking.tracking import Tracking
from lora_jax.messages import first_line
from lora_jax.records import run_record
from lora_jax.records.metrics_log import LostFolderError, Metrics, last_check
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState, eval_params


class TrialRecords:
    """The records of the trials of a program, by the numbers of their folders.

    Args:
      experiments: the trials that train.
      done: the numbers of those that have records of earlier processes, which stay as they are.
      folders: those of all numbers.
      started: when this process began with the trials, by `time.perf_counter`.
      tracking: the trackers of the trials.
    """

    def __init__(
        self,
        experiments: Mapping[int, Experiment],
        done: Collection[int],
        folders: Sequence[Path],
        started: float,
        tracking: Tracking,
    ) -> None:
        self.outcomes = {number: Outcome() for number in experiments}
        self.ended: dict[int, run_record.Record] = {}
        self._experiments, self._started, self._tracking = experiments, started, tracking
        self._folders = {number: folders[number] for number in experiments}
        self._held = {n: HeldFolder(each) for n, each in self._folders.items() if n not in done}
        self._decisions: list[Decision] = []

    @property
    def waiting(self) -> list[int]:
        """The numbers of the trials that have no record yet."""
        return [number for number in self._held if number not in self.ended]

    def folder(self, place: int) -> Path:
        """The folder of a trial by its place in the program."""
        return list(self._folders.values())[place]

    def metrics(self, place: int) -> Metrics:
        """The metrics file of a trial by its place in the program."""
        number = list(self._folders)[place]
        return self._tracking.metrics(number, self._folders[number], processes.writes())

    def completed(self, number: int, group: Group, place: int, state: TrainState) -> None:
        """Save what a trained trial leaves, and its record.

        Args:
          place: that of the trial in its group.
          state: the one to save.
        """
        self._held[number].require()
        state = dataclasses.replace(state, trainable=eval_params(state))
        call, own = group.call(place, state.trainable), group.own(place, state)
        mine = group.experiments[place]  # whose batches have the shapes that were scored
        is_last = int(state.step) == self.outcomes[number].steps
        scored = group.outputs.get(mine, {}) if is_last else {}
        results = artifacts.save(mine, own, self._folders[number], call, scored)
        self._tracking.write(number, self.outcomes[number].steps, results.written, results.images)
        self._end(number, "completed", "", results)

    def diverged(self, number: int) -> None:
        self._end(number, "diverged", artifacts.NOT_FINITE.format(self.outcomes[number].steps))

    def stopped(self, place: int, decisions: list[Decision]) -> None:
        """Write the record of a trial that leaves at the last of these rungs, if it has none."""
        self._decisions = list(decisions)
        number, rung = list(self._experiments)[place], len(decisions) - 1
        if number not in self.waiting:
            return
        if self.outcomes[number].diverged:
            self.diverged(number)
            return
        metric = self._experiments[number].loop.metric
        self._end(number, "stopped", decisions[-1].said(place, rung, metric))

    def failed(self, error: Exception) -> None:
        """Write records of an error that ended the program, for all trials that have none.

        Raises:
          LostFolderError: a folder was removed or replaced.
        """
        for number in self.waiting:
            # Writing fails on a full disk or in a removed folder; the first error reports that.
            with contextlib.suppress(OSError, LostFolderError):
                self._end(number, "failed", first_line(error))
        for held in self._held.values():
            held.require()

    def _end(
        self,
        number: int,
        status: run_record.Status,
        note: str,
        results: artifacts.Results = artifacts.NOTHING,
    ) -> None:
        seconds = (time.perf_counter() - self._started) / len(self._experiments)
        check = last_check(self._folders[number] / "metrics.jsonl")
        record = artifacts.record(
            self._experiments[number],
            self.outcomes[number],
            results,
            seconds=seconds,
            status=status,
            note=note,
            check=check,
            rungs=of_trial(self._decisions, list(self._experiments).index(number)),
            trackers=self._tracking.where(number),
        )
        self._held[number].require()
        if processes.writes():
            run_record.write(self._folders[number], record)
        self.ended[number] = record
        self._tracking.end(number, status)
