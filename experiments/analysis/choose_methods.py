"""Group runs into methods and settings, and choose a setting for each method by a stated rule.

A method is a row of a study. If runs belong to no study, it is a variant and the storage of its
base. A setting is what a study varies within a method: learning rate, rank, ... If runs differ in
anything else, that is an error, and they are not compared.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis import collect_runs
from experiments.analysis.labels import UNTITLED, Titles, in_order, method, natural, told_apart
from experiments.analysis.published import MODEL_TITLES
from experiments.analysis.recorded_runs import (
    OF_ANY,
    Run,
    Unfinished,
    mean_score,
    require_settings,
    sign,
)

RATE = "optimizer.learning_rate"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a method and its runs, one for each seed and draw.

    `unfinished` runs have begun and left no record.
    """

    values: Mapping[str, str]
    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...] = ()

    @property
    def rate(self) -> float:
        return float(self.values[RATE])

    def of(self, phase: str) -> tuple[Run, ...]:
        """The runs of a phase: those scored on `held_out` examples, or on the `development` set."""
        return tuple(run for run in self.runs if run.held_out == (phase == "held_out"))

    def lost(self, phase: str) -> tuple[Unfinished, ...]:
        """The runs of a phase that left no record."""
        return tuple(each for each in self.unfinished if each.held_out == (phase == "held_out"))


def last_scores(runs: Sequence[Run]) -> dict[collect_runs.RunNumber, float | None]:
    """The last scores of the runs that diverged, None for those that left none."""
    lost = [run for run in runs if run.record.status == "diverged"]
    return {run.number: run.score(run.record.metric) for run in lost}


def with_last_scores(runs: Sequence[Run]) -> dict[collect_runs.RunNumber, float]:
    """The scores by seed and draw: of completed runs, and of diverged runs the last ones.

    A run that diverged is a result of its method: without it, the mean would be that of the lucky
    seeds. So if one left no score, there are none.
    """
    every = last_scores(runs)
    last = {number: score for number, score in every.items() if score is not None}
    return {} if len(last) < len(every) else {**by_number(runs), **last}


@dataclasses.dataclass(frozen=True)
class Method:
    """All settings of a method, sorted by learning rate, and the chosen one.

    `chosen_on` is `held-out` if the setting was chosen on other examples than the scored ones,
    `scored` if on the same ones, and `nothing` if there was only one setting. `runs` are the scored
    runs of the chosen setting. `phase` says on what the settings were `tried`: `held_out` examples
    or the `development` set. `tried` includes settings whose runs left no record.
    """

    key: str
    label: str
    settings: tuple[Setting, ...]
    tried: tuple[Setting, ...]
    chosen: Setting | None
    chosen_on: str
    runs: tuple[Run, ...]
    phase: str

    @property
    def budget(self) -> tuple[int, int]:
        """The number of settings tried, and the number of their runs that began."""
        runs = [len(each.of(self.phase)) + len(each.lost(self.phase)) for each in self.tried]
        return len(self.tried), sum(runs)

    @property
    def steps(self) -> int:
        """The training steps of the runs that were tried; trials stopped early have fewer."""
        return sum(run.record.steps for each in self.tried for run in each.of(self.phase))

    @property
    def edge(self) -> str:
        """`lowest` or `highest` if the chosen learning rate is at an end of those with a result.

        Otherwise it is empty. A rate whose runs diverged has a result; one whose runs all failed or
        were killed has none.
        """
        ended = [
            e for e in self.tried if any(r.record.status != "failed" for r in e.of(self.phase))
        ]
        rates = sorted({each.rate for each in ended})
        if self.chosen is None or len(rates) < 2:
            return ""
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.chosen.rate, "")

    @property
    def last_scores(self) -> dict[collect_runs.RunNumber, float | None]:
        """The last scores of the runs that diverged, None for those that left none."""
        return last_scores(self.runs)

    def scores(self) -> dict[collect_runs.RunNumber, float]:
        """The scores of its runs (`with_last_scores`)."""
        return with_last_scores(self.runs)

    def counted(self) -> list[float]:
        """Those that count in means and intervals: where runs share draws, the mean of each."""
        return collect_runs.means_of_draws(self.scores()).tolist()

    def describe(self, setting: Setting) -> str:
        """A setting as text: its learning rate, and whatever else differs between the settings."""
        keys = {key for each in self.settings for key in each.values}
        differ = {k for k in keys if len({each.values.get(k) for each in self.settings}) > 1}
        texts = [f"{setting.rate:g}"]
        for key in sorted(differ - {RATE}):
            value = setting.values.get(key, "unset")
            texts.append(f"{key.rpartition('.')[2]} {value}".replace('"', ""))
        return ", ".join(texts)


@dataclasses.dataclass(frozen=True)
class Contest:
    """The methods that were run for one model and task, scored on the same examples."""

    table: str
    model: str
    task: str
    task_title: str
    metric: str
    held_out: bool
    """Whether scores are on held-out training examples, as no run has the development set."""
    methods: tuple[Method, ...]
    unfinished: tuple[Unfinished, ...] = ()
    """The runs without a record that belong here, including other attempts of recorded runs."""

    @property
    def title(self) -> str:
        return f"{self.model_title}, {self.task_title} ({self.table})"

    @property
    def model_title(self) -> str:
        return MODEL_TITLES.get(self.model, self.model)

    @property
    def registration(self) -> str:
        """The digest of the study that its runs are of; empty if they are of none."""
        settings = (setting for method in self.methods for setting in method.settings)
        return next((run.study.registration for each in settings for run in each.runs), "")

    @property
    def numbers(self) -> set[collect_runs.RunNumber]:
        """The seeds and draws of all scored runs."""
        return {run.number for method in self.methods for run in method.runs}


def by_number(runs: Iterable[Run]) -> dict[collect_runs.RunNumber, float]:
    """The scores of the completed runs by seed and draw: of the adapters that they saved.

    They use the main metric, in percent if tables print it so.
    """
    done = (run for run in runs if run.completed)
    scores = {run.number: run.score(run.record.metric, run.config.train.select) for run in done}
    return {number: score for number, score in scores.items() if score is not None}


def contests(
    runs: Iterable[Run],
    titles: Mapping[str, Titles],
    varies: Sequence[str] = (),
    unfinished: Sequence[Unfinished] = (),
) -> list[Contest]:
    """Group runs into contests by study, model and task.

    Args:
      titles: for each study, those of its rows, in order, and of its columns.
      varies: settings that a study varies besides the sections `collect_runs.VARIED`, such as
        `train.batch_size`.
      unfinished: runs without a record; one belongs to a contest if it differs from the contest's
        runs only in what the study varies, and has the same registration, or none as they have.

    Raises:
      ValueError: runs differ in more than what a study varies, a run has two different results, or
        the runs of a contest have several main metrics.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if not run.study.table:
            require_settings(run.folder / "record.json", run.record.config, OF_ANY)
        groups.setdefault(collect_runs.contest_key(run), []).append(run)

    def fixed(run: Run | Unfinished) -> Mapping[str, str]:
        return collect_runs.varied_and_fixed(run, varies)[1]

    made, lost = [], list(unfinished)
    tasks = natural(task for _, _, task in groups)

    def place(group: tuple[str, str, str]) -> tuple[str, str, int]:
        table, model, task = group
        return table, model, [*titles.get(table, UNTITLED).columns, *tasks].index(task)

    for table, model, task in sorted(groups, key=place):
        own = groups[table, model, task]
        same = collect_runs.without_strays(own, fixed)
        collect_runs.require_comparable(same, varies)
        if metric := collect_runs.main_metric(task, same):
            ours, registered = fixed(same[0]), {run.study.registration for run in same}
            near = [each for each in lost if each.study.registration in registered]
            mine = [each for each in near if each.config and fixed(each) == ours]
            lost = [each for each in lost if each not in mine]
            known = titles.get(table, UNTITLED)
            title = known.column(task)
            held_out = all(run.held_out for run in same)
            methods = _methods(same, mine, known.rows, varies, held_out)
            made.append(Contest(table, model, task, title, metric, held_out, methods, tuple(mine)))
    return made


def _methods(
    runs: Sequence[Run],
    lost: Sequence[Unfinished],
    names: Mapping[str, str],
    varies: Sequence[str],
    held_out: bool,
) -> tuple[Method, ...]:
    by_key: dict[str, list[Run | Unfinished]] = {}
    for each in (*runs, *lost):
        by_key.setdefault(collect_runs.method_key(each), []).append(each)
    labels = told_apart(
        {
            key: (names.get(key) if own[0].study.table else "") or method(key)
            for key, own in by_key.items()
        }
    )
    order = dict.fromkeys([*(key for key in names if key in labels), *in_order(labels)])
    return tuple(_method(key, labels[key], by_key[key], varies, held_out) for key in order)


def _method(
    key: str,
    label: str,
    runs: Sequence[Run | Unfinished],
    varies: Sequence[str],
    held_out: bool,
) -> Method:
    groups: dict[str, list[Run | Unfinished]] = {}
    for run in runs:
        if run.config is not None:
            values = json.dumps(collect_runs.varied_and_fixed(run, varies)[0], sort_keys=True)
            groups.setdefault(values, []).append(run)
    settings = [_setting(json.loads(values), own) for values, own in groups.items()]
    settings.sort(key=lambda each: (each.rate, sorted(each.values.items())))
    known = any(each.runs for each in settings)
    held = any(each.of("held_out") or (not known and each.lost("held_out")) for each in settings)
    phase = "held_out" if held else "development"
    tried = tuple(each for each in settings if each.of(phase) or each.lost(phase))
    chosen = best([(each, each.of(phase)) for each in tried])
    scored = "held_out" if held_out else "development"
    chosen_on = "held-out" if phase != scored else "scored"
    if sum(bool(each.of(phase)) for each in tried) <= 1:
        chosen_on = "nothing"
    own_runs = () if chosen is None else chosen.of(scored)
    return Method(key, label, tuple(settings), tried, chosen, chosen_on, own_runs, phase)


def _setting(values: Mapping[str, str], runs: Sequence[Run | Unfinished]) -> Setting:
    """A setting with each run once; unfinished attempts of recorded runs are left out."""
    ended = [run for run in runs if isinstance(run, Run)]
    lost = {(e.number, e.held_out): e for e in runs if isinstance(e, Unfinished)}
    for run in ended:
        lost.pop((run.number, run.held_out), None)
    held_out = collect_runs.one_of_each([run for run in ended if run.held_out])
    development = collect_runs.one_of_each([run for run in ended if not run.held_out])
    return Setting(values, (*held_out, *development), tuple(lost.values()))


def best(tried: Sequence[tuple[Setting, Sequence[Run]]]) -> Setting | None:
    """The setting with the best mean score, the first if several are equal; None without scores.

    A setting that diverged with any seed ranks below all that did not. Other failures do not count.
    A single setting needs no score if it diverged: nothing is chosen among others.
    """
    if len(tried) == 1 and any(run.record.status == "diverged" for run in tried[0][1]):
        return tried[0][0]
    ranks = []
    for setting, runs in tried:
        if scores := by_number(runs):
            stable = all(run.record.status != "diverged" for run in runs)
            mean = mean_score(collect_runs.means_of_draws(scores).tolist())
            ranks.append((stable, sign(runs[0].record.metric) * mean, setting))
    return max(ranks, key=lambda rank: rank[:2])[2] if ranks else None


def halved(method: Method) -> list[Run]:
    """The tried runs of a method that reached a rung of successive halving."""
    return [run for each in method.tried for run in each.of(method.phase) if run.record.rungs]


def any_stopped(methods: Sequence[Method]) -> bool:
    """Whether a run was stopped early, so that numbers of runs say too much of what was spent."""
    return any(run.record.status == "stopped" for each in methods for run in halved(each))
