"""The one thread that computes: it alone has the engine, and puts adapters into the bank."""

import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from absl import logging

from experiments.serving.engines import Engine
from experiments.serving.errors import ApiError, failed_step, one_line, refusal
from lora_jax.serving.adapter_store import AdapterStore, Version
from lora_jax.serving.slot_table import Lease, NoSlotFree


class Started(NamedTuple):
    """A job's adapter is in a slot, and its rows wait or run."""

    digest: str


class Step(NamedTuple):
    """What one row of a job has got: a token, or what else the engine gives, and its end."""

    row: int
    value: Any
    finish: str | None


class Failed(NamedTuple):
    """A job has ended without its answer."""

    error: ApiError


Event = Started | Step | Failed


@dataclasses.dataclass(eq=False)
class Job:
    """A request to compute some rows with one adapter.

    Args:
      adapter: its name; None for the base.
      rows: what the engine takes, one for each sequence.
      post: takes what happens, in the thread of the model.
      loaded: the adapter as it was read for this job, until it is in a slot.
      lease: of the slot, while the job runs; the thread alone sets it.
      left: by their numbers in the engine, the rows that have not ended; the thread's, too.
    """

    adapter: str | None
    rows: Sequence[Any]
    post: Callable[[Event], None]
    loaded: Version | None = None
    lease: Lease | None = None
    left: dict[int, int] = dataclasses.field(default_factory=dict)


PATIENCE = 2
"""How many steps in a row may fail before all jobs end."""


class ModelThread(threading.Thread):
    """Runs jobs until it is stopped. All methods may be called from any thread.

    Args:
      make: loads the model, in this thread: the store, the engine, and the digest of the base.
      changed: called in this thread before each step and after what it has done, with how many
        steps that was, and how many of them failed.
    """

    def __init__(
        self,
        make: Callable[[], tuple[AdapterStore, Engine, str]],
        changed: Callable[["ModelThread", int, int], None] = lambda thread, steps, failed: None,
    ):
        super().__init__(name="model", daemon=True)
        self._make, self._changed = make, changed
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[Job, None] = {}
        self._owners: dict[int, Job] = {}
        """The jobs of rows that have not ended, by the rows' numbers in the engine."""
        self._parked: dict[Job, None] = {}
        """Jobs that wait for a slot, in their order; some of those that run hold all slots."""
        self._loading: set[Job] = set()
        """Jobs whose adapter is loaded in the background, or has programs compiled there."""
        self._freed = False
        """Whether a lease has been released since a slot was last looked for."""
        self._failures = 0
        self.ready: Future[None] = Future()
        """Done once jobs can run, or with the error for which they cannot."""
        self.ended: Future[None] = Future()
        """Done once the thread has ended, with the error if it was not stopped."""

    def stop(self) -> None:
        """End the thread after what it does now; jobs that run are left."""
        self._inbox.put(None)

    def submit(self, job: Job) -> None:
        """Begin a job. Its events say what happens to it; the last is a `Step` or `Failed`."""
        self._inbox.put(lambda: self._begin(job))

    def cancel(self, job: Job) -> None:
        """End a job, which gets no more events. One that has ended is left alone."""
        self._inbox.put(lambda: self._cancel(job))

    def cut(self, job: Job, row: int) -> None:
        """End one row of a job, which gets no more events."""
        self._inbox.put(lambda: self._cut(job, row))

    def abort(self, error: ApiError) -> None:
        """End all jobs with an error."""
        self._inbox.put(lambda: self._abort(error))

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run a function between steps."""
        result: Future[Any] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return  # who has called no longer waits
            try:
                result.set_result(function())
            except Exception as error:  # of the function, for who has called
                result.set_exception(error)

        self._inbox.put(run)
        return result

    @property
    def busy(self) -> bool:
        """Whether it computes or compiles, which cannot be interrupted."""
        return self.is_alive() or (self.loaded and self.store.compiling)

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded, so that there is a store."""
        return self.ready.done() and self.ready.exception() is None

    @property
    def waiting(self) -> int:
        others = (*self._parked, *self._loading)
        return self._engine.waiting + sum(len(job.rows) for job in others)

    @property
    def active(self) -> int:
        return self._engine.active

    # -- in the thread -----------------------------------------------------------------------------

    def acquire(self, name: str, loaded: Version | None) -> Lease | Future[Version]:
        """As `AdapterStore.acquire_or_load`; what a put takes, the engine has let go of before."""
        if name not in self.store.held():
            self._engine.let_go()
        return self.store.acquire_or_load(name, loaded)

    def renew(self) -> None:
        """Let the engine have the bank as it is now, and let go of the arrays of another."""
        with self.store.using() as bank:
            self._engine.take(bank)

    def run(self) -> None:
        try:
            self.store, self._engine, self._digest = self._make()
        except BaseException as error:  # who has started the thread must know
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        try:
            self._loop()
        except BaseException as error:  # nobody else would hear of it
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _loop(self) -> None:
        self._changed(self, 0, 0)
        while True:
            while not self._owners or not self._inbox.empty():
                if (task := self._inbox.get()) is None:
                    return
                task()
                self._retry()
                if not self._owners:
                    self._changed(self, 0, 0)
            self._changed(self, 0, 0)  # what is computed now
            failed = self._step()
            self._retry()
            self._changed(self, 1, failed)

    def _begin(self, job: Job) -> None:
        """Begin a job, behind those that wait for a slot if it needs one too."""
        if (job.adapter and self._parked) or not self._start(job):
            self._parked[job] = None

    def _retry(self) -> None:
        """Begin jobs that wait for a slot, in their order, if one may have become free."""
        while self._freed and self._parked:
            self._freed = False
            while self._parked and self._start(job := next(iter(self._parked))):
                del self._parked[job]

    def _start(self, job: Job) -> bool:
        """Begin a job, or say why it cannot. False if it must wait until a slot is free.

        Loads and compilations are not waited for here, where they would keep all other jobs from
        their steps.
        """
        try:
            if job.adapter:
                found = self.acquire(job.adapter, job.loaded)
                if isinstance(found, Future):
                    self._load(job, found)
                    return True
                job.lease = found
            self._running[job] = None
            slot = job.lease.slot if job.lease else 0
            for row, each in enumerate(job.rows):
                number = self._engine.submit(slot, each)
                job.left[number], self._owners[number] = row, job
        except Exception as error:  # of a file, an adapter or the engine: the server goes on
            held = any(each.lease is not None for each in self._running)
            if isinstance(error, NoSlotFree) and held:
                return False
            if job in self._running:
                self._end(job)
            job.post(Failed(refusal(job.adapter, error)))
            return True
        job.loaded = None  # it is in the bank
        job.post(Started(job.lease.digest if job.lease else self._digest))
        return True

    def _load(self, job: Job, loading: Future[Version]) -> None:
        """Begin a job once its adapter is loaded, and its programs are compiled."""

        def loaded() -> None:
            if job not in self._loading:  # it has been cancelled
                return
            self._loading.remove(job)
            if (error := loading.exception()) is not None:
                job.post(Failed(refusal(job.adapter, error)))
                return
            job.loaded = loading.result()
            self._begin(job)

        self._loading.add(job)
        loading.add_done_callback(lambda _: self._inbox.put(loaded))

    def _cancel(self, job: Job) -> None:
        self._parked.pop(job, None)
        self._loading.discard(job)
        if job in self._running:
            self._end(job)

    def _cut(self, job: Job, row: int) -> None:
        if job not in self._running:
            return
        for number in [number for number, each in job.left.items() if each == row]:
            self._engine.cancel(number)
            del job.left[number], self._owners[number]
        if not job.left:
            self._end(job)

    def _end(self, job: Job) -> None:
        """Free all that a job has."""
        for number in job.left:
            self._engine.cancel(number)
            del self._owners[number]
        job.left.clear()
        del self._running[job]
        if job.lease is not None:
            job.lease.release()
            self._freed = True

    def _step(self) -> int:
        """Compute a step, and say what it gave. Returns how many failed."""
        try:
            with self.store.using() as bank:
                events = list(self._engine.step(bank))
        except Exception as error:  # of XLA or of memory: those that were running are told
            logging.error("a step failed: %s", one_line(error))
            logging.debug("%s", traceback.format_exc())
            self._failures += 1
            if self._failures == PATIENCE:
                self._lost()
            return 1
        spoilt, self._failures = self._failures > 0, 0
        for number, value, finish in events:
            if (job := self._owners.get(number)) is None:
                continue
            row = job.left[number]
            if finish == "error":
                self._end(job)
                job.post(Failed(_spoilt(job.adapter, spoilt)))
                continue
            if finish is not None:
                del job.left[number], self._owners[number]
                if not job.left:
                    self._end(job)
            job.post(Step(row, value, finish))
        return 0

    def _abort(self, error: ApiError) -> None:
        for job in (*self._parked, *self._loading):
            job.post(Failed(error))
        self._parked.clear()
        self._loading.clear()
        self._fail_running(error)

    def _fail_running(self, error: ApiError) -> None:
        for job in list(self._running):
            self._end(job)
            job.post(Failed(error))

    def _lost(self) -> None:
        """Tell all jobs that run that steps fail, and begin with empty lanes."""
        self._failures = 0
        self._fail_running(failed_step())
        with self.store.using() as bank:
            self._engine.restart(bank)


def _spoilt(adapter: str | None, by_step: bool) -> ApiError:
    """What is said of a job whose outputs are not numbers: of its own, or after a failed step."""
    if adapter is not None and not by_step:
        return refusal(adapter, ValueError("its outputs are not numbers"))
    why = "the failed step has spoilt it" if by_step else "outputs are not numbers"
    what = "the base" if adapter is None else f"the adapter '{adapter}'"
    logging.error("a job of %s has failed: %s", what, why)
    return failed_step()
