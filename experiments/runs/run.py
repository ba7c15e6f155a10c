"""Train one run in one folder; write metrics, checkpoints, the adapter and, last, the record."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from configs.settings import RunConfig
from experiments.distributed import processes
from experiments.runs import artifacts, generated_texts, step_audit
from experiments.runs.folder_lock import Place, alone
from experiments.runs.memory_line import announce
from experiments.runs.progress_bar import bar
from experiments.setup.experiment import Experiment, build
from experiments.setup.out_of_memory import explained
from lora_jax.records import run_record
from lora_jax.records.metrics_log import Metrics
from lora_jax.training import trial_program
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.loop import fit
from lora_jax.training.outcome import Outcome
from lora_jax.training.preemption import preemption
from lora_jax.training.saved_trials import OneTrial
from lora_jax.training.step import TrainState

TEMPORARY_FAILURE = 75
"""The exit code of a program that should be started again (EX_TEMPFAIL of sysexits.h)."""


UNSEALED = "record.json has no seal (of an earlier version): a changed number would not be seen"
"""The message for a completed run whose record cannot be checked for changes."""


class Interrupted(SystemExit):
    """A run got a SIGTERM and has saved its state; the program exits with TEMPORARY_FAILURE."""

    def __init__(self) -> None:
        super().__init__(TEMPORARY_FAILURE)


def run(
    config: RunConfig,
    workdir: Path,
    label: str = "train",
    mesh: Mesh | None = None,
    say: Callable[[str], None] | None = None,
    audit: bool = True,
) -> run_record.Record:
    """Train the run that a config describes, or continue where an earlier process stopped.

    If the folder has a completed record of the same config, nothing is changed, and that record is
    returned. With several processes (`experiments.distributed.processes`), all call this, and one
    writes.

    Args:
      say: called with a line on the memory that the run will take, before it takes any, or with a
        line that the existing record has no seal.
      audit: whether to compare the compiled step with NumPy's before it trains.

    Raises:
      ValueError, FileNotFoundError: the config cannot work, the folder holds another run, or
        another process trains there; nothing has been trained or overwritten.
      LostFolderError: the folder was removed or replaced during the run (also a ValueError).
      Interrupted: a SIGTERM came before the end of training; there is no record yet.
    """
    started = time.perf_counter()
    with preemption() as interrupted, contextlib.ExitStack() as stack:
        if (record := _done(workdir, config)) is not None:  # works in a read-only folder, too
            if say is not None and processes.writes() and not _sealed(workdir):
                say(UNSEALED)
            return record
        processes.first(lambda: stack.enter_context(alone(workdir)))
        # Another process may have completed the run in between.
        if (record := _done(workdir, config)) is not None:
            return record
        return _run(config, workdir, label, mesh, interrupted, say, audit, started)


def _done(workdir: Path, config: RunConfig) -> run_record.Record | None:
    """The completed record of this config, or None; if the first process sees it, all must.

    Raises:
      ValueError: this process does not see the record that the first process sees.
    """
    if not processes.first(lambda: _ended(workdir, config) is not None):
        return None
    if (record := _ended(workdir, config)) is not None:
        return record
    raise ValueError(f"--workdir {workdir} is not what the first process has there")


def _run(
    config: RunConfig,
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
    processes.first(lambda: run_record.claim(workdir, config.plain))
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
            with contextlib.suppress(OSError):  # on a full disk, the first error reports it
                run_record.write(workdir, failed)
        raise
    record = artifacts.record(experiment, outcome, started, status, note, left)
    place.require()
    if processes.writes():
        run_record.write(workdir, record)
    processes.together("the record is written")
    return record


def _ended(workdir: Path, config: RunConfig) -> run_record.Record | None:
    """The completed record of this config, if the folder has one."""
    if not (workdir / "config.json").exists():
        return None
    run_record.claim(workdir, config.plain)
    record = run_record.read(workdir)
    return record if record is not None and record.status == "completed" else None


def _sealed(workdir: Path) -> bool:
    found = run_record.read_sealed(workdir)
    return found is not None and found[1]


def summarise(record: run_record.Record) -> list[str]:
    """Lines on the result of a run, with the scores of the saved adapter."""
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
    """Train, and return the state to save and a note for the record; fills in `outcome`."""
    loop, program = experiment.loop, trial_program.alone(experiment.make_step(), experiment.frozen)
    identity = {"weights": experiment.weights_digest, "data": experiment.task.digest()}
    shown = bar(label, loop.steps) if processes.writes() else contextlib.nullcontext()
    with (
        Checkpoints(workdir / "checkpoints", best=(loop.metric, loop.mode)) as checkpoints,
        Metrics(workdir, enabled=processes.writes()) as metrics,
        shown as progress,
    ):
        saved = OneTrial(checkpoints, identity)
        (state,) = fit(
            program,
            [experiment.start(keep=generated_texts.writes_samples(experiment.config))],
            loops=[loop],
            batches=[experiment.batches],
            evaluate=lambda _, trainable: experiment.evaluate(trainable),
            saved=saved,
            metrics=[metrics],
            outcomes=[outcome],
            progress=progress,
            interrupted=interrupted,
            audit=(lambda states: step_audit.of_program([experiment], program, states))
            if audit
            else None,
        )
        if outcome.interrupted:
            return state, ""
        if outcome.diverged:
            return state, artifacts.NOT_FINITE.format(outcome.steps)
        if experiment.config.train.select == "best":
            (state,), (note,) = saved.best([state], [outcome])
            return state, note
    return state, ""
