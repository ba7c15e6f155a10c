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
worth twice as many. A grid of seeds and examples follows, for the method whose smallest difference
found is in the middle, with what its noise is of.

The second form takes the noise of one task. Without --sd_examples, seeds are the only noise: what
is found is of new seeds on the same examples.

All methods are one family of tests by Holm's procedure. The level of its first step is used, which
is the smallest, so the true power is at least the one asked for. In the folder of a registered
study, its protocol gives the reference, the level, the margin as --difference, and the number of
tests, unless flags do.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import collect_runs, power, recorded_runs, scored_examples, significance
from experiments.analysis.choose_methods import Contest, contests
from experiments.analysis.paired_scores import Noise, noise_of_seeds
from experiments.reports.sheets import of_tasks
from experiments.reports.tables import config_tables
from experiments.studies import adherence, registration
from experiments.studies.protocol import Protocol
from lora_jax.messages import require_known
from lora_jax.table import Table

_RESULTS = flags.DEFINE_string("results", None, "The folder with the runs' records below it.")
_SD = flags.DEFINE_float(
    "sd",
    None,
    "Without --results: the standard deviation of the paired differences.",
    lower_bound=1e-6,
)
_SD_EXAMPLES = flags.DEFINE_float(
    "sd_examples",
    0.0,
    "With --sd: the standard deviation of what a test example adds to the differences of many "
    "seeds.",
    lower_bound=0,
)
_SD_REST = flags.DEFINE_float(
    "sd_rest", 0.0, "With --sd: that of what it adds with one seed alone.", lower_bound=0
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "With --sd_examples: how many test examples there are.", lower_bound=2
)
_SEEDS = flags.DEFINE_integer("seeds", None, "With --sd: how many seeds there are.", lower_bound=2)
_DIFFERENCE = flags.DEFINE_float(
    "difference",
    None,
    "The difference to show, in points. The default is the registered margin, or 1.",
    lower_bound=1e-6,
)
_POWER = flags.DEFINE_float(
    "power",
    power.POWER,
    "The wanted probability of showing the difference.",
    lower_bound=0.5,
    upper_bound=0.999,
)
_LEVEL = flags.DEFINE_float(
    "level",
    None,
    "The level of the family of tests. The default is the registered one, or 0.05.",
    lower_bound=1e-6,
    upper_bound=0.49,
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


@dataclasses.dataclass(frozen=True)
class Question:
    """The difference in points that is to be shown, with what power, in how large a family."""

    difference: float
    power: float
    level: float
    tests: int

    @classmethod
    def of(cls, protocol: Protocol | None, tests: int) -> "Question":
        """What is asked, by flags, or else by the protocol."""
        margin, level = (protocol.margin, protocol.level) if protocol else (1.0, significance.LEVEL)
        return cls(
            margin if _DIFFERENCE.value is None else _DIFFERENCE.value,
            _POWER.value or power.POWER,
            level if _LEVEL.value is None else _LEVEL.value,
            _TESTS.value or max(tests, 1),
        )

    def __str__(self) -> str:
        family = f"{self.level:g}"
        if self.tests > 1:
            family += f" for {self.tests} tests, so {self.first:.2g} for Holm's first"
        return f"Power {100 * self.power:g}%, level {family}."

    @property
    def first(self) -> float:
        """The level of the first step of Holm's procedure."""
        return power.family_level(self.level, self.tests)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of the differences of one method, on a task or on average over several."""

    name: str
    design: power.Design
    shown: Mapping[str, float]
    """The standard deviations that the table shows, by the head of their column."""
    seeds: int | None = None
    error: float | None = None
    """The standard error with these seeds; without one, nothing is said of them."""
    df: float = 0.0
    """The error's degrees of freedom."""
    variance: float | None = None
    """That of the mean, if that without pairs is 1."""

    @property
    def varies(self) -> bool:
        """Whether differences vary on each task: otherwise their noise is not known."""
        return all(task.squares(2).variance for task in self.design.tasks)

    @property
    def has_grid(self) -> bool:
        """Whether its seeds and the noise of examples, on any task, are known."""
        known = any(math.isfinite(task.n) for task in self.design.tasks)
        return known and self.varies and bool(self.seeds and self.error)


def main() -> None:
    if (_RESULTS.value is None) == (_SD.value is None):
        raise ValueError("expected either --results or --sd")
    if _SD.value is not None:
        of_records = (_REFERENCE, _TABLE, _SIZE, _VARIES)
        cli.refuse_ignored(of_records, "it goes with --results")
        print("\n".join(_without_records(_SD.value)))
        return
    cli.refuse_ignored((_SEEDS, _SD_EXAMPLES, _SD_REST, _EXAMPLES), "it goes with --sd")
    folder = Path(str(_RESULTS.value))
    known = {each.digest: each.protocol for each in registration.below(folder)}
    made, notes = _contests(folder, set(known))
    studies: dict[tuple[str, str, str], list[Contest]] = {}
    for each in made:
        studies.setdefault((each.table, each.model, each.registration), []).append(each)
    tables, failed = [], []
    for (table, model, digest), own in studies.items():
        try:
            tables.append(_study(own, known.get(digest)))
        except ValueError as error:
            failed.append(f"{table}, {model}: {error}" if len(studies) > 1 else str(error))
    if not tables:
        raise ValueError("; ".join(failed))
    print("\n\n".join(tables), *failed, *notes, sep="\n")


def _without_records(sd: float) -> Iterator[str]:
    """The table and the grid of the noise that flags describe."""
    if (_EXAMPLES.value is None) == bool(_SD_EXAMPLES.value or _SD_REST.value):
        raise ValueError("--sd_examples and --examples go together, and --sd_rest with them")
    n = math.inf if _EXAMPLES.value is None else _EXAMPLES.value
    task = power.Task(sd, _SD_EXAMPLES.value or 0.0, _SD_REST.value or 0.0, n)
    row, asked = Row("one task", power.Design((task,)), {"sd": sd}), Question.of(None, 1)
    if (seeds := _SEEDS.value) is not None:
        known = {"error": row.design.error(seeds), "df": row.design.df(seeds)}
        row = dataclasses.replace(row, seeds=seeds, **known)
    yield str(asked)
    yield power_table([row], asked)
    if row.has_grid:
        yield from _grid(row, asked)


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


def _study(made: Sequence[Contest], protocol: Protocol | None) -> str:
    """The table of one study and model.

    Raises:
      ValueError: no contest has the reference, or none has two seeds in common with it.
    """
    reference = _REFERENCE.value or (protocol.reference if protocol else "lora")
    labels = {method.key: method.label for contest in made for method in contest.methods}
    require_known(reference, labels, f"{made[0].table} has no method --reference={reference}")
    # The noise of scores on held-out examples is not that of the scores that a study compares.
    tuned = [each.task_title for each in made if each.held_out and protocol]
    own = [each for each in made if not (each.held_out and protocol)]
    found = noise_of_seeds(own, reference, scored_examples.values(own))
    if not found:
        why = f": only tuned yet are {', '.join(tuned)}" if tuned else ""
        raise ValueError(f"no method has two seeds in common with {labels[reference]}{why}")
    asked = Question.of(protocol, protocol.tests if protocol else len(labels) - 1)
    tasks = [e.task_title for e in own if any(e.task_title in each.by_task for each in found)]
    over = f", mean over {len(tasks)} tasks" * (len(tasks) > 1)
    title = f"{made[0].model} ({made[0].table})" if len(made) > 1 else made[0].title
    title += f", {_SIZE.value} runs" * (_SIZE.value != "full")
    rows = {each.key: _measured(each, tasks) for each in found}
    lines = [
        f"{title}, differences from {labels[reference]}{over}. {asked}",
        power_table([*rows.values()], asked),
        *_left_out(own, found, labels[reference]),
    ]
    known = sorted(
        (each for each in found if rows[each.key].has_grid),
        key=lambda each: rows[each.key].error or 0.0,
    )
    if known:
        middle = known[(len(known) - 1) // 2]
        lines += _grid(rows[middle.key], asked)
        lines += [f"What this noise is of, {middle.label}:", parts_table(middle.parts)]
    if shared := [e.task_title for e in made if collect_runs.share_draws(e.numbers)]:
        each = "each draw of the training examples counts as one seed, with the mean of its runs"
        lines.append(f"Runs share draws, so {each}: {', '.join(shared)}")
    return "\n".join([*lines, *[f"Tuned, but not scored yet: {', '.join(tuned)}"] * bool(tuned)])


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


def power_table(rows: Sequence[Row], asked: Question) -> str:
    """The table; columns of which no row knows anything are left out.

    Nothing is said of differences that do not vary.
    """
    heads = dict.fromkeys(head for row in rows for head in row.shown)
    difference, margin = power.difference_power, power.equivalence_power
    wanted = f"{asked.difference:g}"
    columns = {
        "": [row.name for row in rows],
        **{head: [_number(row.shown.get(head)) for row in rows] for head in heads},
        "variance with pairs": [_number(row.variance) for row in rows],
        "seeds": [str(row.seeds or "") for row in rows],
        "smallest found": [_smallest(difference, row, asked) for row in rows],
        "smallest margin": [_smallest(margin, row, asked) for row in rows],
        f"seeds to find {wanted}": [_seeds(difference, row, asked) for row in rows],
        f"examples to find {wanted}": [_examples(difference, row, asked) for row in rows],
        f"seeds to show less than {wanted}": [_seeds(margin, row, asked) for row in rows],
        f"examples to show less than {wanted}": [_examples(margin, row, asked) for row in rows],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    return Table(tuple(shown), list(zip(*shown.values(), strict=True))).to_text()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _smallest(power_of: power.PowerOf, row: Row, asked: Question) -> str:
    if not (row.varies and row.error):
        return ""
    return _number(power.smallest(power_of, row.error, row.df, asked.first, asked.power))


def _seeds(power_of: power.PowerOf, row: Row, asked: Question) -> str:
    """`never` where test examples alone leave too large an error."""
    if not row.varies:
        return ""
    seeds = power.seeds_needed(power_of, row.design, asked.difference, asked.first, asked.power)
    if seeds is None:
        return "never" if row.design.of_examples else f"> {power.MOST_SEEDS}"
    return str(seeds)


def _examples(power_of: power.PowerOf, row: Row, asked: Question) -> str:
    """As many times those of today; `never` where the seeds alone leave too large an error."""
    if not row.has_grid or row.seeds is None:
        return ""
    known = power_of, row.design, row.seeds
    times = power.examples_needed(*known, asked.difference, asked.first, asked.power)
    if times is None:
        return "never"
    return f"{times:.2g} times" if times < 10 else f"{times:.0f} times"


def parts_table(tasks: Mapping[str, power.Task]) -> str:
    """What the noise of one method's differences is of, by task."""
    heads = ("", "examples", "sd of seeds", "sd of examples", "sd of the rest")
    rows = [
        [name, f"{task.n:g}" if math.isfinite(task.n) else "", _number(task.seeds)]
        + [_number(each) if math.isfinite(task.n) else "" for each in (task.examples, task.rest)]
        for name, task in tasks.items()
    ]
    return Table(heads, rows).to_text()


TIMES = (0.5, 1.0, 2.0, 4.0, 10.0)
"""How many times the seeds and the test examples of today the grid has."""


def _grid(row: Row, asked: Question) -> Iterator[str]:
    """The smallest difference found, of so many seeds (rows) and times the examples (columns)."""

    def found(seeds: int, times: float) -> str:
        error, df = row.design.error(seeds, times), row.design.df(seeds, times)
        return _number(power.detectable(error, df, asked.first, asked.power))

    seeds = sorted({max(2, round(times * (row.seeds or 2))) for times in TIMES})
    rows = [[str(n), *(found(n, times) for times in TIMES)] for n in seeds]
    yield f"Smallest difference found, {row.name}, by seeds and times the test examples:"
    yield Table(("seeds", *(f"{times:g} times" for times in TIMES)), rows).to_text()


if __name__ == "__main__":
    cli.main(main)
