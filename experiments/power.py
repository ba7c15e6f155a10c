r"""Say how small a difference a study can show, and how many seeds and test examples one needs.

    python -m experiments.power --results=runs/against_lora --difference=1.0 --power=0.8
    python -m experiments.power --sd=0.6 --seeds=10 --sd_examples=35 --examples=872

The first form reads records and predictions. Each method has a row: the sd of its differences from
the reference, paired by seed, on each task; and of their mean over tasks, the smallest true
difference that the study finds with this power; the smallest margin within which it shows two equal
methods to be equivalent (TOST); and how many seeds --difference needs with today's test examples,
or how many times these examples with today's seeds, to be found or to be that margin. `never` says
that the other of the two is too small: more seeds do not make up for few examples. The variance
with pairs is 1 if it brings nothing to give both methods the same seeds; if it is 0.5, they are
worth twice as many. A grid of seeds and examples follows, for the method of --grid, with what its
noise is of.

The second form takes the sd of one task, or of several: --sd=0.6,1.1. Without --sd_examples, seeds
are the only noise: what is found is of new seeds on the same examples.

All methods are one family of tests by Holm's procedure. The level of its first step is used, which
is the smallest, so the true power is at least the one asked for. In the folder of a registered
study, its protocol gives the reference, the level, the margin as --difference, and the number of
tests, unless flags do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import collect_runs, power, recorded_runs, scored_examples, significance
from experiments.analysis.choose_methods import Contest, contests
from experiments.analysis.paired_scores import Noise, noise_of_seeds
from experiments.reports.sheets import of_tasks
from experiments.studies import adherence, registration
from experiments.studies.protocol import Protocol
from experiments.tables import config_tables
from experiments.tables.power_table import Question, Row, grid, parts_table, power_table
from lora_jax.suggest import require_known

_RESULTS = flags.DEFINE_string("results", None, "The folder with the runs' records below it.")
_SD = flags.DEFINE_list(
    "sd", None, "Without --results: the standard deviation of the paired differences, by task."
)
_SD_EXAMPLES = flags.DEFINE_list(
    "sd_examples",
    None,
    "With --sd: the standard deviation of what a test example adds to the differences of many "
    "seeds, by task.",
)
_SD_REST = flags.DEFINE_list(
    "sd_rest",
    None,
    "With --sd_examples: that of what it adds with one seed alone. The default is 0.",
)
_EXAMPLES = flags.DEFINE_list(
    "examples", None, "With --sd_examples: how many test examples there are, by task."
)
_GRID = flags.DEFINE_string(
    "grid",
    None,
    "The method whose grid of seeds and examples is shown. The default is the one whose smallest "
    "difference found is in the middle.",
)
_SEEDS = flags.DEFINE_integer("seeds", None, "With --sd: how many seeds there are.", lower_bound=2)
_DIFFERENCE = flags.DEFINE_float(
    "difference",
    None,
    "The difference to show, in points. The default is the registered margin, or 1.",
)
_POWER = flags.DEFINE_float(
    "power", power.POWER, "The wanted probability of showing the difference."
)
_LEVEL = flags.DEFINE_float(
    "level", None, "The level of the family of tests. The default is the registered one, or 0.05."
)
_TESTS = flags.DEFINE_integer(
    "tests",
    None,
    "How many tests the family has. The default is the registered number, or that of the methods "
    "compared with the reference, or 1.",
    lower_bound=1,
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "The method to compare others with. The default is the registered one, or lora.",
)
_TABLE = flags.DEFINE_string("table", None, "Only runs of this config. The default is all runs.")
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Only runs of this size.")
_VARIES = flags.DEFINE_list(
    "varies", [], "Further settings that the study varies, such as train.batch_size."
)


def main() -> None:
    if (_RESULTS.value is None) == (_SD.value is None):
        raise ValueError("expected either --results or --sd")
    if _SD.value is not None:
        of_records = (_REFERENCE, _TABLE, _SIZE, _VARIES, _GRID)
        cli.refuse_ignored(of_records, "it goes with --results")
        print(_without_records(cli.numbers("sd", _SD.value)))
        return
    for flag in (_SEEDS, _SD_EXAMPLES, _SD_REST, _EXAMPLES):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name} belongs to --sd: with --results, the records say what it is"
            )
    folder = Path(str(_RESULTS.value))
    known = {each.digest: each.protocol for each in registration.below(folder)}
    made, notes = _contests(folder, set(known))
    studies: dict[tuple[str, str, str], list[Contest]] = {}
    for each in made:
        studies.setdefault((each.table, each.model, _registration(each)), []).append(each)
    tables, failed = [], []
    for (table, model, digest), own in studies.items():
        try:
            tables.append(_study(own, known.get(digest)))
        except ValueError as error:
            failed.append(f"{table}, {model}: {error}" if len(studies) > 1 else str(error))
    if not tables:
        raise ValueError("; ".join(failed))
    print("\n\n".join(tables))
    for note in (*failed, *notes):
        print(note)


def _without_records(deviations: Sequence[float]) -> str:
    if min(deviations) <= 0:
        raise ValueError(f"--sd={','.join(map(str, _SD.value or ()))}: expected numbers above 0")
    asked, tasks = _question(None, 1), _tasks(deviations)
    rows = [_expected("one task", tasks)]
    if len(tasks) > 1:
        rows = [_expected(f"task {place}", (each,)) for place, each in enumerate(tasks, 1)]
        rows.append(_expected("mean over tasks", tasks))
    return "\n".join([str(asked), power_table(rows, asked), *_grid(rows[-1], asked)])


def _tasks(deviations: Sequence[float]) -> tuple[power.Task, ...]:
    """The tasks that flags describe.

    Raises:
      ValueError: one of the flags is missing, or has another number of tasks.
    """
    given = {"sd": list(deviations)}
    for flag in (_SD_EXAMPLES, _EXAMPLES, _SD_REST):
        if flag.value is not None:
            given[flag.name] = cli.numbers(flag.name, flag.value)
            if len(given[flag.name]) != len(deviations) or min(given[flag.name]) < 0:
                said = f"--{flag.name}={','.join(flag.value)}"
                raise ValueError(f"{said}: expected as many numbers as --sd has, 0 or more")
    if len({"sd_examples", "examples"} & set(given)) == 1 or given.keys() == {"sd", "sd_rest"}:
        raise ValueError("--sd_examples and --examples go together, and --sd_rest with them")
    if min(given.get("examples", [2])) < 2:
        raise ValueError(f"--examples={min(given['examples']):g}: expected 2 examples or more")
    without = {"examples": math.inf}
    return tuple(
        power.Task(*values)
        for values in zip(
            *(
                given.get(name, [without.get(name, 0.0)] * len(deviations))
                for name in ("sd", "sd_examples", "sd_rest", "examples")
            ),
            strict=True,
        )
    )


def _expected(name: str, tasks: Sequence[power.Task]) -> Row:
    design = power.Design(tuple(tasks))
    shown = {"sd": tasks[0].seeds} if len(tasks) == 1 else {}
    if (seeds := _SEEDS.value) is None:
        return Row(name, design, shown)
    return Row(name, design, shown, seeds, design.error(seeds), design.df(seeds))


def _grid(row: Row, asked: Question) -> Iterator[str]:
    """The grid of a row whose seeds and noise of examples are known."""
    if row.varies and row.has_examples and row.seeds:
        yield f"Smallest difference found, {row.name}, by seeds and times the test examples:"
        yield grid(row, asked)


def _contests(folder: Path, known: set[str]) -> tuple[list[Contest], list[str]]:
    """The contests between the runs of the wanted table and size, and notes on other runs.

    Args:
      known: the digests of the registered studies in the folder.

    Raises:
      ValueError: no such run has completed.
    """
    runs = recorded_runs.find(folder)
    sized, notes = collect_runs.select(runs, _TABLE.value, _SIZE.value)
    collect_runs.require_settings_of(_VARIES.value, sized)
    notes += adherence.elsewhere(known, sized)
    sized, left = adherence.as_registered(folder, sized, runs)
    tables = config_tables.tables(folder)
    varies = [*_VARIES.value, *config_tables.varied(tables, {run.study.table for run in sized})]
    if made := contests(sized, config_tables.titles(tables), varies):
        return made, [*notes, *left]
    others = "".join(f"; {said}" for said in left) or collect_runs.elsewhere(runs, _SIZE.value)
    raise ValueError(f"--results {folder}: no run of size {_SIZE.value} has completed{others}")


def _registration(contest: Contest) -> str:
    """The digest of the study that a contest's runs are of; empty if they are of none."""
    runs = (run for method in contest.methods for run in method.runs)
    return next((run.study.registration for run in runs), "")


def _study(made: Sequence[Contest], protocol: Protocol | None) -> str:
    """The table of one study and model.

    Raises:
      ValueError: no contest has the reference, or none has two seeds in common with it, or a flag
        is out of its range.
    """
    reference = _REFERENCE.value or (protocol.reference if protocol else "lora")
    labels = {method.key: method.label for contest in made for method in contest.methods}
    if reference not in labels and _REFERENCE.value is None:
        which = "registered" if protocol else "default"
        raise ValueError(
            f"the {which} reference, {reference}, was not run in {made[0].table}: give "
            f"--reference, one of {', '.join(labels)}"
        )
    require_known(reference, labels, f"no method --reference={reference}")
    # The noise of scores on held-out examples is not that of the scores that a study compares.
    tuned = [each.task_title for each in made if each.held_out and protocol]
    own = [each for each in made if not (each.held_out and protocol)]
    found = noise_of_seeds(own, reference, scored_examples.values(own))
    if not found and tuned:
        raise ValueError(f"no run is scored yet, only tuned: {', '.join(tuned)}")
    if not found:
        raise ValueError(f"no method has two seeds in common with {labels[reference]}")
    asked = _question(protocol, protocol.tests if protocol else len(labels) - 1)
    tasks = [e.task_title for e in own if any(e.task_title in each.by_task for each in found)]
    over = f", mean over {len(tasks)} tasks" * (len(tasks) > 1)
    title = f"{made[0].model} ({made[0].table})" if len(made) > 1 else made[0].title
    title += f", {_SIZE.value} runs" * (_SIZE.value != "full")
    rows = {each.key: _measured(each, tasks) for each in found}
    lines = [
        f"{title}, differences from {labels[reference]}{over}. {asked}",
        power_table([*rows.values()], asked),
        *_left_out(own, found, labels[reference]),
        *_few_examples([*rows.values()], asked),
    ]
    if shown := _shown(rows):
        lines += [*_grid(rows[shown], asked)]
        noises = next(each for each in found if each.key == shown)
        lines += [f"What this noise is of, {noises.label}:", parts_table(noises.parts)]
    if shared := [e.task_title for e in made if collect_runs.share_draws(e.numbers)]:
        each = "each draw of the training examples counts as one seed, with the mean of its runs"
        lines.append(f"Runs share draws, so {each}: {', '.join(shared)}")
    lines += [f"Tuned, but not scored yet: {', '.join(tuned)}"] if tuned else []
    return "\n".join(lines)


def _measured(found: Noise, tasks: Sequence[str]) -> Row:
    """The row of a method.

    Args:
      tasks: all that the table has.
    """
    own, mean = found.deviations, found.mean
    return Row(
        found.label + of_tasks(len(own), len(tasks)),
        power.Design(tuple(found.parts.values())),
        {f"sd {task}" if len(tasks) > 1 else "sd": own[task] for task in tasks if task in own},
        mean.n,
        mean.error,
        mean.df,
        found.pairing.ratio,
    )


def _shown(rows: Mapping[str, Row]) -> str:
    """The method whose grid is shown; empty if the noise of examples is not known of any.

    Raises:
      ValueError: --grid names a method that has no row with it.
    """
    known = {key: row for key, row in rows.items() if row.has_examples and row.varies and row.error}
    if _GRID.value is not None:
        require_known(_GRID.value, known, f"no method --grid={_GRID.value} with known examples")
        return _GRID.value
    ordered = sorted(known, key=lambda key: known[key].error or 0.0)
    return ordered[(len(ordered) - 1) // 2] if ordered else ""


def _few_examples(rows: Sequence[Row], asked: Question) -> Iterator[str]:
    """Which methods no number of seeds decides, as test examples are too few."""
    few = [
        row.name
        for row in rows
        if row.varies
        and row.design.of_examples
        and power.seeds_to_detect(row.design, asked.difference, asked.first, asked.power) is None
    ]
    if few:
        yield (
            f"More seeds cannot find {asked.difference:g} with these test examples, which are too "
            f"few: {', '.join(few)}"
        )


def _left_out(made: Sequence[Contest], found: Sequence[Noise], reference: str) -> Iterator[str]:
    """The tasks and methods of which nothing is known, and the methods without noise."""
    tasks = {task for each in found for task in each.by_task}
    if missing := [each.task_title for each in made if each.task_title not in tasks]:
        yield f"No two common seeds: {', '.join(missing)}"
    labels = {method.label for each in made for method in each.methods}
    if without := labels - {reference, *(each.label for each in found)}:
        yield f"No two seeds in common with {reference}: {', '.join(sorted(without))}"
    constant = {each.label: [t for t, sd in each.deviations.items() if sd == 0] for each in found}
    if said := [f"{label} on {', '.join(own)}" for label, own in constant.items() if own]:
        yield f"Differences do not vary, so nothing can be said of seeds: {'; '.join(said)}"


def _question(protocol: Protocol | None, tests: int) -> Question:
    """What is asked, by flags, or else by the protocol.

    Raises:
      ValueError: a flag is out of its range.
    """
    level = _LEVEL.value
    if level is None:
        level = protocol.level if protocol else significance.LEVEL
    difference = _DIFFERENCE.value
    if difference is None:
        difference = protocol.margin if protocol else 1.0
    if not 0 < level < 0.5:
        raise ValueError(f"--level={level:g}: expected a number between 0 and 0.5")
    if not level < _POWER.value < 1:
        raise ValueError(
            f"--power={_POWER.value:g}: expected a number between the level, {level:g}, and 1"
        )
    if not (difference > 0 and math.isfinite(difference)):
        raise ValueError(f"--difference={difference:g}: expected a number of points above 0")
    return Question(difference, _POWER.value, level, _TESTS.value or max(tests, 1))


if __name__ == "__main__":
    cli.main(main)
