r"""Run a sweep: train many trials from one command.

    python -m experiments.sweep --config=configs/glue.py:task=cola,source=tsv,folder=glue_data \
        --sweep=variant=lora,dora --sweep=config.optimizer.learning_rate=1e-4,3e-4,1e-3 \
        --sweep=config.seed=0:5 --workdir=runs/cola --dry_run

Every trial is a run of `experiments.train` in a folder below WORKDIR/trials. All trials are checked
before the first one starts. Give the same command again to continue a stopped sweep:

* completed trials are left as they are, and so are diverged ones, unless --retry;
* new and failed trials are trained, and interrupted ones go on from their newest checkpoint;
* a trial whose process was killed, for example when memory ran out, is noted and left for the next
  command.

Exit code 0 means that all trials have completed. With --search, stopped and diverged trials are no
failure.

--sweep=KEY=VALUES may be given several times. Every combination of values is a trial. With --zip,
the first values of all keys make a trial, then the second ones, and so on. With --trials=N, N
combinations are drawn at random. KEY is `config.` and a setting, or an argument of the config file;
`experiments.sweeps.sweep_flag` describes VALUES. If the config file has a function `sweep()` that
yields dicts of keys and values, each dict is combined with each combination from --sweep, also with
each that is drawn. No key may be in both.

With --search, trials are chosen one after another, or taken out while they train, to find the best
values of --sweep; `docs/guides/search.md` describes it.

Each job runs in one process and holds trials that share a program. --per_job limits their number;
by default, a program's trials are divided until every process and shard has a job. A shard counts
as one process unless --processes says more. Checkpoints belong to all trials of a job, so give
every shard, and a repeated command, the same --processes or --per_job.

With --track=NAMES, every trial is a run of the group WORKDIR in these trackers
(docs/guides/tracking.md).
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from experiments import cli
from experiments.runs import audit_flag
from experiments.runs.run_options import RunOptions
from experiments.sweeps import jobs, preflight, sweep_flag, trials
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import launch, local
from experiments.sweeps.search.search import Asked, Search, asked_by_flags
from experiments.sweeps.view import View, summary
from experiments.tracking import track_flag
from lora_jax.training.loop_settings import Loop
from lora_jax.training.trial_program import EXECUTIONS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config that says what to train.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for the list of trials and their runs.")
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "What varies: KEY=VALUES, for example config.seed=0:5. VALUES are separated by commas; 0:5 is "
    "0 to 4; log:1e-5:1e-2 and uniform:0:0.3 are ranges for --trials and --search.",
)
_ZIP = flags.DEFINE_bool("zip", False, "Pair the values of all --sweep flags; do not combine them.")
_TRIALS = flags.DEFINE_integer(
    "trials",
    None,
    "How many trials: drawn at random from --sweep, for each trial of a config's own sweep(); or "
    "chosen by --search.",
    lower_bound=1,
    upper_bound=sweep_flag.MOST,
)
_SEED = flags.DEFINE_integer("sweep_seed", 0, "The seed of random draws and of --search.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "List the trials with their states; train nothing.",
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    launch.LAUNCHERS,
    "What runs the jobs: processes on this machine, Slurm, or Ray. print prints their commands.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes",
    None,
    "For how many processes to make jobs; the local launcher also runs so many at a time. The "
    "default is one for each GPU, and one for all TPU chips. Without accelerators it is one for "
    "each core, or fewer, so that each has at least four trials. With --shard it is one for each "
    "shard, whatever devices its machine has.",
    lower_bound=1,
    upper_bound=local.MOST,
)
_PER_JOB = flags.DEFINE_integer(
    "per_job",
    None,
    "The most trials in a job, which one process trains; 0 puts all trials of a program in one. By "
    "default, a program's trials are divided until every process and shard has a job.",
    lower_bound=0,
)
_EXECUTION = flags.DEFINE_enum(
    "execution",
    None,
    EXECUTIONS,
    "How the trials of a program step: each by itself, or all in one call, one by one (map) or at "
    "once (vmap). The default is the fastest way, which is measured.",
)
_SHARD = flags.DEFINE_string(
    "shard",
    "",
    "Given as i/n: train only every n-th job, from job i on. The first job is 0. By default, all "
    "are trained. Where a shard's machine has several GPUs, give --processes, too.",
)
_RETRY = flags.DEFINE_bool("retry", False, "Also train diverged trials again.")


def sweep() -> None:
    with launch.stopped_by_signals():
        _sweep()


def _sweep() -> None:
    folder = SweepFolder(Path(str(_WORKDIR.value)))
    folder.require_sweep_or_empty()
    track_flag.wanted()  # an unknown tracker is an error before any trial is checked
    part = jobs.parse_shard(_SHARD.value)
    launch.require_own_flags(str(_LAUNCHER.value), flags.FLAGS)
    if _LAUNCHER.value != "local" and _PER_JOB.value is not None:
        cli.refuse_ignored((_PROCESSES,), "--per_job says how many trials a job has")
    unfit = {"zip": _ZIP.value, "shard": part is not None, "per_job": _PER_JOB.value is not None}
    asked = asked_by_flags(_TRIALS.value, _SEED.value, _LAUNCHER.value, unfit)
    if asked is None and _TRIALS.value is None:
        cli.refuse_ignored((_SEED,), "it goes with --trials and --search")
    if asked is not None:
        _search(asked, folder)
        return
    launcher, found = str(_LAUNCHER.value), folder.known(_trials())
    if not _DRY_RUN.value:
        # The workers need the devices; this process traces shapes and reads texts.
        jax.config.update("jax_platforms", "cpu")
        launch.require(launcher)
    machine = local.slots(_PROCESSES.value, len(found)) if launcher == "local" else []
    loops = preflight.check_trials(found)
    whole = jobs.make(found, _PER_JOB.value, _workers(machine, part))
    mine = jobs.shard(whole, part)
    if part is not None and not mine:
        print(jobs.no_job(whole, part))
        return
    names, how = {trial.name for job in mine for trial in job}, _how(folder)
    pairs = [each for each in zip(found, loops, strict=True) if each[0].name in names]
    console = Console(width=None if sys.stdout.isatty() else 200)
    view = View([trial for trial, _ in pairs], [loop for _, loop in pairs], folder, console)
    if _DRY_RUN.value:
        _list(view, _todo(mine, folder, how), how)
        return
    with launch.cluster(launcher, _todo(mine, folder, how)) as ray, folder.held(part):
        folder.write_list(found)
        todo = _todo(mine, folder, how)
        if launch.launch(launcher, todo, folder, view, machine, ray, how):
            _finish(view, folder)


def _search(asked: Asked, folder: SweepFolder) -> None:
    """Do what `--search` asks for."""
    if not _DRY_RUN.value:
        jax.config.update("jax_platforms", "cpu")  # the workers need the devices
    search = Search(asked, folder, _arguments(), _SWEEP.value)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if _DRY_RUN.value:
        found, loops = search.first()
        how = _how(folder, asked.halving)
        _list(View(found, loops, folder, console), _todo(jobs.make(found, 0), folder, how), how)
        print(search.outlook(loops))
        return
    trained: list[trials.Trial] = []
    announced = False

    def train(found: Sequence[trials.Trial], loops: Sequence[Loop], halving: int) -> None:
        nonlocal announced
        trained.extend(found)
        machine = local.slots(1 if halving else _PROCESSES.value, len(found))
        whole = jobs.make(found, 0 if halving else None, max(len(machine), 1))
        view, how = View(found, loops, folder, console), _how(folder, halving)
        folder.write_list(found)
        if todo := _todo(whole, folder, how):
            if not announced:
                local.announce(machine, len(todo))
            announced = True
            with view.shown():
                command = functools.partial(jobs.command, how=how)
                local.launch(todo, folder, machine, view.update, command, bool(halving))
        view.update(now=True)

    with folder.held(None):
        for line in search.run(train):
            print(line)
    fine = ("completed", "stopped", "diverged")
    if any(folder.state(each).status not in fine for each in trained):
        sys.exit(1)


def _workers(machine: Sequence[local.Slot], part: tuple[int, int] | None) -> int:
    """How many processes, in all shards, need a job.

    All shards must get the same number, so the devices of one shard's machine do not count.
    """
    own = _PROCESSES.value or (len(machine) if part is None else 1)
    return max(own, 1) * (1 if part is None else part[1])


def _arguments() -> list[str]:
    """The flags of all trials, `--config=FILE:...` first."""
    flag = flags.FLAGS["config"]
    settings = config_flags.get_override_values(flag).items()
    return [
        f"--config={config_flags.get_config_filename(flag)}",
        *(f"--config.{key}={sweep_flag.text_of(value)}" for key, value in settings),
    ]


def _trials() -> list[trials.Trial]:
    arguments = _arguments()
    overrides = trials.overrides_of(
        arguments[0].removeprefix("--config=").partition(":")[0],
        _SWEEP.value,
        paired=_ZIP.value,
        trials=_TRIALS.value,
        seed=_SEED.value,
        arguments=arguments,
    )
    return trials.make(arguments, overrides)


def _todo(mine: list[jobs.Job], folder: SweepFolder, how: RunOptions) -> list[jobs.Job]:
    """The jobs with a trial to train, with all their trials, as these share checkpoints."""
    return [
        job for job in mine if any(folder.state(trial).status not in how.final for trial in job)
    ]


def _how(folder: SweepFolder, halving: int = 0) -> RunOptions:
    return RunOptions(
        execution=_EXECUTION.value,  # type: ignore[arg-type]
        retry=bool(_RETRY.value),
        audit=audit_flag.wanted(),
        halving=halving,
        track=jobs.tracked(folder, track_flag.wanted()),
    )


def _finish(view: View, folder: SweepFolder) -> None:
    """Print what the trials came to; exit with code 1 unless all have completed."""
    view.update(now=True)
    for line in summary(view.rows, folder):
        print(line)
    if any(row.state.status != "completed" for row in view.rows):
        sys.exit(1)


def _list(view: View, todo: list[jobs.Job], how: RunOptions) -> None:
    """Print every trial with its digest and status."""
    width = max(len(row.trial.name) for row in view.rows)
    for row in view.rows:
        print(f"{row.trial.name:{width}}  {row.trial.digest[:16]}  {row.state.status}")
    left = sum(row.state.status not in how.final for row in view.rows)
    print(f"{len(view.rows)} trials, {left} to train, in {len(todo)} jobs")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(sweep)
