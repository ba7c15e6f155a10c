r"""Run a study: tune learning rates on held-out examples, then train the best with every seed.

    python -m experiments.tune --study=against_lora --workdir=runs/against_lora \
        --argument=source=tsv,folder=glue_data

A study is a config file with a STUDY (`experiments.studies.protocol`): methods, tasks, learning
rates, seeds, and how it decides. A file of your own is given by its path, --study=my_study.py, or
as a module on PYTHONPATH, --study=my_package.my_study. The first command registers all of it in
WORKDIR/study.json, and every run carries the digest of that file; a later command with another
protocol is an error. With --register, it does no more: commit study.json, and then give the command
without it, and the report can say from git's history that the file came before the runs.

Then the untrained model of each task is scored where it has a score (`--untrained` does no more).
For each task, every method is trained with each rate and scored on held-out training examples. If
the best rate of any method lies at the edge of the grid, all methods get one more. Then each method
is trained with its best rate of these and every seed; only these runs see the development set.

Runs that differ only in numbers share one program, as in `experiments.sweep`. Give the same command
again to continue a stopped study. `--tasks` and `--methods` train a part of it, so that several
commands can run side by side. `--rows` and `--columns` register other methods or tasks than the
study's: any row or task that the config takes.

With --track=NAMES, every run is one of the group WORKDIR in these trackers
(docs/guides/tracking.md).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

import variants
from configs.settings import RunConfig
from experiments import cli
from experiments.command_names import shown
from experiments.runs.audit_flag import wanted
from experiments.runs.interruption import between_programs
from experiments.runs.run_options import RunOptions
from experiments.setup import config_files
from experiments.setup.config import parse, study_of
from experiments.setup.config_flags import check_config
from experiments.setup.devices import announce
from experiments.setup.from_config import make_any_task
from experiments.studies import registration, untrained
from experiments.studies.protocol import Protocol
from experiments.studies.training import Cell, Trainer
from experiments.tracking import track_flag
from experiments.tracking.tracking import Track
from lora_jax.data.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.messages import require_known
from lora_jax.records.packed import RECORDS
from lora_jax.training.trial_program import EXECUTIONS

_STUDY = flags.DEFINE_string(
    "study",
    None,
    "The name of a config file that has a STUDY, such as against_lora. A file of your own is given "
    "by its path or module.",
)
_ARGUMENT = flags.DEFINE_string(
    "argument",
    "",
    "The arguments of the config file, such as source=tsv,folder=glue_data: what follows the colon "
    "in --config.",
)
_ROWS = flags.DEFINE_list(
    "rows",
    [],
    "The methods to register, such as lora,my_package.my_variant. The default is the study's own.",
)
_COLUMNS = flags.DEFINE_list(
    "columns", [], "The tasks to register. The default is the study's own."
)
_METHODS = flags.DEFINE_list(
    "methods", [], "Train only these of the registered methods. The default is all."
)
_TASKS = flags.DEFINE_list(
    "tasks", [], "Train only these of the registered tasks. The default is all."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for the registration and all runs.")
_ADAPTERS = flags.DEFINE_bool(
    "adapters", True, "Keep the adapters of runs, and not only records and predictions."
)
_REGISTER = flags.DEFINE_bool(
    "register",
    False,
    "Only write study.json and train nothing, so that it can be committed before the first run.",
)
_UNTRAINED = flags.DEFINE_bool(
    "untrained", False, "Register, score the untrained models, and train nothing."
)
_EXECUTION = flags.DEFINE_enum(
    "execution",
    None,
    EXECUTIONS,
    "How runs that share a program step. The default is the fastest way, which is measured; each "
    "gives the same bits again on this machine, whatever is measured.",
)

SCORES = "a study chooses rates by training; --untrained scores its models without"


def tune() -> None:
    name, module = config_files.module_of(str(_STUDY.value), ("STUDY", "get_config"), "study")
    _check_argument(_ARGUMENT.value)
    protocol = Protocol.of(module.STUDY, f"STUDY of {name}")
    if _ROWS.value or _COLUMNS.value:
        rows, columns = _ROWS.value or protocol.rows, _COLUMNS.value or protocol.columns
        protocol = dataclasses.replace(protocol, rows=tuple(rows), columns=tuple(columns))
        protocol.require("--rows, --columns")
    for flag, has in ((_METHODS, protocol.rows), (_TASKS, protocol.columns)):
        for each in flag.value or ():
            require_known(each, has, f"--{flag.name}={each} is not of this study")
    workdir, trackers = Path(str(_WORKDIR.value)), track_flag.wanted()
    cells = make_cells(module, protocol, _ARGUMENT.value)
    require_table(cells, name)
    planned = {task: {cell.row: cell.planned for cell in row} for task, row in cells.items()}
    budgets, new = {}, registration.read(workdir) is None
    if new:
        budgets = {task: _budget(task, row, protocol) for task, row in cells.items()}
    table = getattr(module, "TABLE", {})
    registered = registration.register(workdir, name, protocol, planned, budgets, table)
    if new and (said := registration.how_to_commit(workdir, name)):
        print(said)
    if _REGISTER.value:
        return
    announce()
    track = Track(trackers, group=workdir)
    how = RunOptions(_EXECUTION.value, audit=wanted(), track=track)  # type: ignore[arg-type]
    cells = make_cells(module, protocol, _ARGUMENT.value, registered.digest)
    # Of the first seed's draw, so that the digest of the data is that of these runs.
    first = {"seed": protocol.seeds[0], "data__draw": protocol.seeds[0]}
    begun = {task: _reference(row, protocol).config(**first) for task, row in cells.items()}
    untrained.write(workdir, registered, begun)
    if _UNTRAINED.value:
        return
    if (workdir / RECORDS).exists():
        raise ValueError(
            f"--workdir={workdir} is packed: {shown('pack')} --unpack={workdir} makes folders "
            "again, in which the study can go on"
        )
    with between_programs() as begin:
        trainer = Trainer(workdir, protocol, how, bool(_ADAPTERS.value), begin)
        for task in _TASKS.value or protocol.columns:
            trainer.task(cells[task], _METHODS.value)


def require_table(cells: Mapping[str, Sequence[Cell]], name: str) -> None:
    """Raise a ValueError if a report would not find the runs of a study by their places in it."""
    for cell in (cell for row in cells.values() for cell in row):
        own = study_of(cell.config().plain)
        for key, value in {"table": name, "row": cell.row, "column": cell.task}.items():
            if (found := getattr(own, key)) != value:
                why = ", the name of its file" if key == "table" else ""
                raise ValueError(
                    f"--study={name}: its runs would be of the {key} '{found}'; let the config set "
                    f"study.{key} to '{value}'{why}"
                )


def _budget(task: str, cells: Sequence[Cell], protocol: Protocol) -> registration.Budget:
    """The main metric of a task, and what the runs of the reference take.

    Raises:
      ValueError: the task cannot be read, or its scores cannot be compared: a registration names
        where its data are, and its margin is of scores where higher is better.
    """
    config = _reference(cells, protocol).config(data__validation=protocol.tuning.held_out)
    try:
        metric = make_any_task(config).metric
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"{task}: {error}") from error
    if metric in LOWER_IS_BETTER:
        raise ValueError(f"{task}: a study compares scores where higher is better, not {metric}")
    train = config.train
    given = config.data.train, train.epochs, train.max_steps, train.batch_size
    return registration.Budget(metric, *given)


def _reference(cells: Sequence[Cell], protocol: Protocol) -> Cell:
    return next(cell for cell in cells if cell.row == protocol.reference)


def make_cells(
    module: Any, protocol: Protocol, argument: str, digest: str = ""
) -> dict[str, list[Cell]]:
    """All cells of a study by task; what is wrong with one is said before any is trained.

    Args:
      module: the study's config file.
      digest: of the registration, which runs carry.
    """
    cells: dict[str, list[Cell]] = {}
    for task in protocol.columns:
        for row in protocol.rows:

            def config(task: str = task, row: str = row, **changes: Any) -> RunConfig:
                given = ",".join(filter(None, (argument, f"task={task}", f"row={row}")))
                with config_files.in_one_line([module.__file__]):
                    made = module.get_config(given)
                check_config(module.__file__, made)
                named = {name.replace("__", "."): value for name, value in changes.items()}
                made.update_from_flattened_dict(named)
                plain = made.to_dict()
                plain["study"] = {**(plain.get("study") or {}), "registration": digest}
                return parse(plain)

            if not config().train.epochs:
                raise ValueError(f"{row} on {task}: config.train.epochs is 0, but {SCORES}")
            tried = variants.find(config().variant.name).suggested.tried
            cells.setdefault(task, []).append(Cell(task, row, config, tried[len(tried) // 2]))
    return cells


def _check_argument(text: str) -> None:
    """Raise a ValueError if an argument sets what the study sets for every run."""
    place = {"row": "by --rows", "task": "by --columns", "seed": "in the file's STUDY"}
    for key, _, value in (item.partition("=") for item in text.split(",")):
        if key in place:
            raise ValueError(f"--argument={text}: {key} is given {place[key]}")
        if key == "epochs" and value.lstrip("+") == "0":  # a file may read it as its own number
            raise ValueError(f"--argument={text}: epochs is 0, but {SCORES}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["study", "workdir"])
    cli.main(tune)
