"""The grid of a contest: every setting that was tried, what it scored, and which runs are missing.

A setting is named by what differs: `rank`, `learning_rate`. A key that has one value for all rows
of a contest is left out.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis import choose_methods, collect_runs, recorded_runs
from experiments.analysis.choose_methods import RATE, Contest, Method, Setting
from experiments.analysis.labels import natural
from experiments.sweeps.trials import labels_of
from lora_jax.files import json_text

NAMED_BY_METHOD = ("variant.name", "quantize.storage")
"""Settings that are a part of a method's name."""
Value = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of a method.

    `values` are those of the grid's keys, None where the method has no such setting. `scores` count
    once for each seed, or draw that seeds share. `lost` are the runs that did not complete, or that
    other settings have and this one lacks (`missing`), by status. `best` says what the setting is
    the best of: `all`, the label of its method, or nothing. Settings with equal means are all best.
    """

    method: Method
    setting: Setting
    values: Mapping[str, Value]
    scores: tuple[float, ...]
    lost: Mapping[str, Sequence[collect_runs.RunNumber]]
    best: str

    @property
    def mean(self) -> float | None:
        return collect_runs.summarise(self.scores, "mean", "sd").centre if self.scores else None

    @property
    def sd(self) -> float | None:
        return collect_runs.summarise(self.scores, "mean", "sd").spread if self.scores else None


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings of a contest: `keys` differ between its rows, `varied` within a method.

    Both map a config's key to its short name.
    """

    contest: Contest
    keys: Mapping[str, str]
    varied: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def best(self) -> list[Row]:
        """The best of all its settings: several if they score the same."""
        return [row for row in self.rows if row.best == "all"]

    @property
    def shown(self) -> bool:
        """Whether it says more than a table of methods: a method has several settings."""
        return bool(self.varied)

    @property
    def of_rates_alone(self) -> bool:
        """Whether the settings of each method differ in nothing but the learning rate."""
        return set(self.varied) <= {RATE}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """What people call settings: `learning rate`, and the section too where two share a name."""
    return {key: name.replace("_", " ") for key, name in labels_of(keys).items()}


def differing(settings: Sequence[Mapping[str, str]], everywhere: bool = True) -> list[str]:
    """The keys of settings that have several values, the learning rate first.

    Args:
      everywhere: whether a setting that some lack counts as another value.
    """
    found = []
    for key in natural(key for each in settings for key in each):
        values = {each[key] for each in settings if key in each}
        lacking = everywhere and any(key not in each for each in settings)
        if len(values) + lacking > 1 and key not in NAMED_BY_METHOD:
            found.append(key)
    return sorted(found, key=lambda key: key != RATE)


def names_of_differing(
    groups: Sequence[Sequence[Mapping[str, str]]], between: bool = True
) -> dict[str, str]:
    """The short names of the keys that differ within a method, or between methods too.

    Args:
      groups: the settings of each method.
    """
    keys = {key for own in groups for key in differing(own)}
    if between:
        keys |= {*differing([each for own in groups for each in own], everywhere=False)}
    return short_names(sorted(keys, key=lambda key: (key != RATE, key)))


def value_of(settings: Mapping[str, str], key: str) -> Value:
    """The value of a setting: a number, or a text; None if it has none."""
    if key not in settings:
        return None
    value = json_text.loads(settings[key].encode(), key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number or isinstance(value, str) else settings[key]


def of_contest(contest: Contest) -> Grid:
    """The grid of a contest, its methods in order, and their settings by value."""
    tried = [(method, each) for method in contest.methods for each in method.tried]
    groups = [[each.values for each in method.tried] for method in contest.methods]
    varied = names_of_differing(groups, between=False)
    keys = varied if in_study(contest) else names_of_differing(groups)
    best = choose_methods.best([(each, each.of(method.phase)) for method, each in tried])
    numbers = {method.phase: set[collect_runs.RunNumber]() for method in contest.methods}
    for method, each in tried:
        numbers[method.phase] |= {run.number for run in _begun(method, each)}
    rows = []
    for method, each in tried:
        scores = choose_methods.with_last_scores(each.of(method.phase))
        mark = method.label if each is method.chosen and len(method.tried) > 1 else ""
        rows.append(
            Row(
                method,
                each,
                {key: value_of(each.values, key) for key in keys},
                tuple(collect_runs.means_of_draws(scores).tolist()),
                _lost(method, each, numbers[method.phase]),
                "all" if each is best and len(tried) > 1 else mark,
            )
        )
    order = [method.key for method in contest.methods]
    rows.sort(key=lambda row: (order.index(row.method.key), [*map(place, row.values.values())]))
    return Grid(contest, keys, {key: keys[key] for key in varied}, tuple(_with_ties(rows)))


def _with_ties(rows: Sequence[Row]) -> list[Row]:
    """The rows; those that score what the best row of all, or of their method, scores are best."""
    marked = {row.best: row for row in rows if row.best}

    def best(row: Row) -> str:
        for mark in ("all", row.method.label):
            other = marked.get(mark)
            if other and (row.mean, "diverged" in row.lost) == (
                other.mean,
                "diverged" in other.lost,
            ):
                return mark
        return row.best

    return [dataclasses.replace(row, best=best(row)) for row in rows]


def in_study(contest: Contest) -> bool:
    """Whether the methods of a contest are rows of a study's table, which name what differs."""
    runs = [run for method in contest.methods for each in method.settings for run in each.runs]
    return bool(runs) and bool(runs[0].study.table)


def _begun(method: Method, setting: Setting) -> list:
    return [*setting.of(method.phase), *setting.lost(method.phase)]


def _lost(
    method: Method, setting: Setting, numbers: set[collect_runs.RunNumber]
) -> dict[str, list[collect_runs.RunNumber]]:
    found: dict[str, list[collect_runs.RunNumber]] = {}
    for run in setting.of(method.phase):
        if not run.completed:
            found.setdefault(run.record.status, []).append(run.number)
    for each in setting.lost(method.phase):
        found.setdefault(each.status, []).append(each.number)
    if missing := numbers - {run.number for run in _begun(method, setting)}:
        found["missing"] = sorted(missing)
    return found


def place(value: Value) -> tuple[int, float, str]:
    """Where a value stands among others: numbers by size, then texts, then none."""
    if value is None:
        return 2, 0.0, ""
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")


def by_values(
    runs: Sequence[recorded_runs.Run], keys: Iterable[str]
) -> list[tuple[dict[str, Value], recorded_runs.Run]]:
    """The runs with their values of some settings, sorted by these."""
    found = [({key: value_of(run.settings, key) for key in keys}, run) for run in runs]
    return sorted(found, key=lambda each: [*map(place, each[0].values())])


def described(row: Row, keys: Mapping[str, str]) -> str:
    """A row in words: `DoRA, learning rate 0.001, rank 4`."""
    known = [(name, row.values[key]) for key, name in keys.items()]
    return ", ".join(
        [row.method.label, *(f"{name} {text(v)}" for name, v in known if v is not None)]
    )


def text(value: Value, none: str = "none") -> str:
    """A value in a sentence or at an axis."""
    if value is None:
        return none
    return (
        f"{value:g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else str(value)
    )
