"""One run in one folder: config, metrics, checkpoints, the adapter and, last, the record."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from experiments.distributed import processes
from experiments.runs import artifacts, generated_texts, step_audit
from experiments.runs.folder_lock import Place, alone
from experiments.runs.memory_line import announce
from experiments.runs.progress_bar import bar
from experiments.setup.experiment import Experiment, build
from experiments.setup.out_of_memory import explained
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.loop import Outcome, fit
from lora_jax.training.preemption import preemption
from lora_jax.training.step import TrainState

TEMPORARY_FAILURE = 75
"""What a program ends with that is to be started again (EX_TEMPFAIL of sysexits.h)."""


UNSEALED = "record.json has no seal (of an earlier version): a changed number would not be seen"
"""What is said of a completed run that cannot show that its record is as it was written."""


class Interrupted(SystemExit):
    """A run was asked to end (SIGTERM) and has saved where it was; ends the program so, too."""

    def __init__(self) -> None:
        super().__init__(TEMPORARY_FAILURE)


def run(
    config: dict[str, Any],
    workdir: Path,
    label: str = "train",
    mesh: Mesh | None = None,
    say: Callable[[str], None] | None = None,
    audit: bool = True,
) -> run_record.Record:
    """Train what a config describes, or go on where an earlier process stopped.

    A folder with the record of this very config, completed, is left as it is, and its record is
    returned. Several processes (`experiments.distributed.processes`) all call this, and one writes.

    Args:
      say: is told what the run will hold in memory, before it takes any, or that the record that
        was there has no seal; None tells nobody.
      audit: whether the compiled step is compared with NumPy's before it trains.

    Raises:
      ValueError, FileNotFoundError: a config that cannot work, or a folder that holds another run,
        or in which another process trains; nothing has been trained or overwritten then.
      LostFolderError: the folder was removed or replaced on the way (a ValueError, too).
      Interrupted: a SIGTERM came before it had trained to the end; there is no record yet.
    """
    started = time.perf_counter()
    with preemption() as interrupted, contextlib.ExitStack() as stack:
        if (record := _done(workdir, config)) is not None:  # as it is, even where nobody may write
            if say is not None and processes.writes() and not _sealed(workdir):
                say(UNSEALED)
            return record
        processes.first(lambda: stack.enter_context(alone(workdir)))
        # Another process may have ended it in between.
        if (record := _done(workdir, config)) is not None:
            return record
        return _run(config, workdir, label, mesh, interrupted, say, audit, started)


def _done(workdir: Path, config: dict[str, Any]) -> run_record.Record | None:
    """The record of this very config, completed, which all processes must see if one does."""
    if not processes.first(lambda: _ended(workdir, config) is not None):
        return None
    if (record := _ended(workdir, config)) is not None:
        return record
    raise ValueError(f"--workdir {workdir} is not what the first process has there")


def _run(
    config: dict[str, Any],
    workdir: Path,
    label: str,
    mesh: Mesh | None,
    interrupted: Callable[[int], bool],
    say: Callable[[str], None] | None,
    audit: bool,
    started: float,
) -> run_record.Record:
    texts = announce(config, say, mesh) if say is not None and processes.writes() else None
    with explained(config):
        experiment = build(config, mesh=mesh, texts=texts)
    processes.first(lambda: run_record.claim(workdir, config))
    if not (workdir / "config.json").exists():
        raise ValueError(f"--workdir {workdir} is not a folder that the first process sees, too")
    outcome, status, left = Outcome(), "completed", artifacts.NOTHING
    place = Place(workdir)
    try:
        with explained(config):
            state, note = _fit(experiment, workdir, label, outcome, audit, interrupted)
            if outcome.interrupted:
                if processes.writes():
                    print(f"interrupted: step {outcome.steps} is saved; the same command goes on")
                raise Interrupted
            if outcome.diverged:
                status = "diverged"
            else:
                call = experiment.adapted_call(state.trainable)
                place.require()
                left = artifacts.save(experiment, state, workdir, call)
    except Exception as error:
        place.require()
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        if processes.writes():
            failed = artifacts.record(experiment, outcome, started, "failed", note)
            with contextlib.suppress(OSError):  # as on a full disk, of which the first error tells
                run_record.write(workdir, failed)
        raise
    record = artifacts.record(experiment, outcome, started, status, note, left)
    place.require()
    if processes.writes():
        run_record.write(workdir, record)
    processes.together("the record is written")
    return record


def _ended(workdir: Path, config: dict[str, Any]) -> run_record.Record | None:
    """The record of this very config, completed, if the folder has it."""
    if not (workdir / "config.json").exists():
        return None
    run_record.claim(workdir, config)
    record = run_record.read(workdir)
    return record if record is not None and record.status == "completed" else None


def _sealed(workdir: Path) -> bool:
    found = run_record.read_sealed(workdir)
    return found is not None and found[1]


def summarise(record: run_record.Record) -> list[str]:
    """What a run came to, with the scores of the adapter that it saved."""
    lines = [f"{record.parameters_trained:,} of {record.parameters_total:,} parameters trained"]
    if record.tokenised_per_second is not None:
        lines.append(f"texts tokenised at {record.tokenised_per_second:,.0f} examples/s")
    if record.note:
        lines.insert(0, record.note)
    ended = f"{record.status} after {record.steps} steps"
    if record.status != "completed":
        return [ended, *lines]
    scores, saved = record.metrics_last, ""
    if record.config["train"]["select"] == "best":
        scores, saved = record.metrics_best, f", saved as of step {record.best_step}, the best"
    named = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    return [f"{ended}{saved}: {named}", *lines]


def _fit(
    experiment: Experiment,
    workdir: Path,
    label: str,
    outcome: Outcome,
    audit: bool,
    interrupted: Callable[[int], bool],
) -> tuple[TrainState, str]:
    """The state to save, and what a reader of the record should know of it; fills in `outcome`."""
    loop, step = experiment.loop, experiment.make_step()
    shown = bar(label, loop.steps) if processes.writes() else contextlib.nullcontext()
    with (
        Checkpoints(workdir / "checkpoints", best=(loop.metric, loop.mode)) as checkpoints,
        Metrics(workdir, enabled=processes.writes()) as metrics,
        shown as progress,
    ):
        state, _ = fit(
            experiment.start(keep=generated_texts.writes_samples(experiment.config)),
            experiment.frozen,
            loop=loop,
            step=step,
            batches=experiment.batches,
            evaluate=experiment.evaluate,
            checkpoints=checkpoints,
            metrics=metrics,
            identity={
                "weights": experiment.weights_digest,
                "data": experiment.task.digest(),
            },
            progress=progress,
            outcome=outcome,
            interrupted=interrupted,
            audit=(lambda state: step_audit.alone(experiment, step, state)) if audit else None,
        )
        if outcome.interrupted:
            return state, ""
        if outcome.diverged:
            return state, artifacts.NOT_FINITE.format(outcome.steps)
        if experiment.config["train"]["select"] == "best":
            return best(checkpoints, state, outcome)
    return state, ""


def best(checkpoints: Checkpoints, state: TrainState, outcome: Outcome) -> tuple[TrainState, str]:
    """The state of the best evaluation whose checkpoint is good; `outcome` names that one."""
    wanted = outcome.best_step
    if wanted == outcome.steps or (restored := checkpoints.restore_best(state)) is None:
        return state, ""
    state, meta, step = restored
    if step == wanted:
        return state, ""
    outcome.best_step, outcome.metrics_best = step, meta["outcome"]["metrics_last"]
    return state, f"the best checkpoint, of step {wanted}, is damaged: of step {step} instead"
