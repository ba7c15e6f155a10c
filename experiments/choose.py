"""From runs to methods with their settings, of which one is chosen by a rule that is said.

A method is a row of a study, or where runs belong to none, a variant and how its base is stored. A
setting is what a study varies within it: learning rate, rank, ... What else differs between runs is
a mistake, never a comparison.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from configs.common_tasks import METHODS
from experiments import collect
from experiments.cells import heading, natural
from experiments.collect import Run
from experiments.published import MODELS

VARIED = ("variant", "optimizer", "quantize", "targets", "also_train")
"""The sections of a config that methods and their settings are made of."""
BESIDE = ("study.row", "data.validation")
NEEDED = ("data.name", "data.draw", "data.source", "data.validation", "model.name", "start_from")
NEEDED += ("optimizer.learning_rate", "variant.name", "quantize.storage", "train.select")
RATE = "optimizer.learning_rate"
KEY = (("variant", "name"), ("quantize", "storage"))
"""What is the same in all runs of a method."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a method and its runs, each seed and draw once.

    `held_out` were scored on training examples that were held out, `development` on the task's own
    development set.
    """

    values: Mapping[str, str]
    held_out: tuple[Run, ...]
    development: tuple[Run, ...]

    @property
    def rate(self) -> float:
        return float(self.values[RATE])

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.held_out + self.development


@dataclasses.dataclass(frozen=True)
class Method:
    """All settings of one method, smaller learning rates first, and the chosen one.

    `chosen_on` is `held-out`, where other examples than the scored ones decided, `scored`, where
    the same did, or `nothing`, where there was one setting only. `runs` are those of the chosen
    setting that are scored.
    """

    key: str
    label: str
    settings: tuple[Setting, ...]
    tried: tuple[Setting, ...]
    chosen: Setting | None
    chosen_on: str
    runs: tuple[Run, ...]

    @property
    def budget(self) -> tuple[int, int]:
        """How many settings it was given to choose from, and how many runs they took."""
        phase = "held_out" if any(each.held_out for each in self.tried) else "development"
        return len(self.tried), sum(len(getattr(each, phase)) for each in self.tried)

    @property
    def edge(self) -> str:
        """Whether the chosen learning rate is the `lowest` or `highest` of several."""
        rates = sorted({each.rate for each in self.tried})
        if self.chosen is None or len(rates) < 2:
            return ""
        return {rates[0]: "lowest", rates[-1]: "highest"}.get(self.chosen.rate, "")

    def scores(self) -> dict[tuple[int, int], float]:
        """The scores of its completed runs by seed and draw."""
        found = {run.number: saved_score(run) for run in self.runs if run.completed}
        return {number: score for number, score in found.items() if score is not None}

    def describe(self, setting: Setting) -> str:
        """A setting by its learning rate and what else differs between this method's settings."""
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
    metric: str
    held_out: bool
    """Whether scores are of held-out training examples, for want of any on the development set."""
    methods: tuple[Method, ...]

    @property
    def title(self) -> str:
        return f"{MODELS.get(self.model, self.model)}, {heading(self.task)} ({self.table})"


def saved_score(run: Run) -> float | None:
    """The main metric of the adapter that the run saved, in percent where tables have percent."""
    return run.score(run.record.metric, run.record.config["train"]["select"])


def contests(
    runs: Iterable[Run], names: Mapping[str, Mapping[str, str]], varies: Sequence[str] = ()
) -> list[Contest]:
    """What can be compared with each other, by study, model and task.

    Args:
      names: of each study, what its rows are called, in order.
      varies: settings that a study varies besides the sections `VARIED`, such as
        `train.batch_size`.

    Raises:
      ValueError: runs that differ in more than what a study varies, or one run with two results.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if not run.study:
            collect.check(run.folder / "record.json", run.record.config, NEEDED)
        groups.setdefault(_place(run), []).append(run)
    made = []
    for (table, model, task), own in sorted(groups.items()):
        alike = _without_strays(own, varies)
        _alike(alike, varies)
        if metrics := {run.record.metric for run in alike if run.completed}:
            if len(metrics) > 1:
                raise ValueError(f"{task}: runs have the metrics {' and '.join(sorted(metrics))}")
            known = names.get(table, {})
            held_out = all(run.held_out for run in alike)
            methods = _methods(alike, known, varies, held_out)
            made.append(Contest(table, model, task, metrics.pop(), held_out, methods))
    return made


def _place(run: Run) -> tuple[str, str, str]:
    config = run.record.config
    if run.study:
        return run.study["table"], run.model, run.study["column"]
    return run.record.experiment, config["model"]["name"], config["data"]["name"]


def _key(run: Run) -> str:
    if run.study:
        return run.study["row"]
    name, storage = _parts(run)
    return name if storage == "none" else f"{name}_{storage}"


def _label(run: Run, names: Mapping[str, str]) -> str:
    if run.study:
        return names.get(_key(run), _key(run).replace("_", " "))
    name, storage = _parts(run)
    label = METHODS.get(name, name)
    return label if storage == "none" else f"{label} on {storage}"


def _parts(run: Run) -> tuple[str, str]:
    name, storage = (str(run.record.config[section][key]) for section, key in KEY)
    return name, storage


def _split(run: Run, varies: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What a run's config says of what a study varies, and of the rest."""
    varied, fixed = {}, {}
    for key, value in collect.settings_of(run.record.config):
        if key.partition(".")[0] in VARIED or key in varies:
            varied[key] = value
        elif key not in BESIDE:
            fixed[key] = value
    return varied, fixed


def _without_strays(runs: Sequence[Run], varies: Sequence[str]) -> list[Run]:
    """The runs but those that failed with something fixed otherwise than in any completed one."""
    done = [_split(run, varies)[1] for run in runs if run.completed]
    return [run for run in runs if run.completed or not done or _split(run, varies)[1] in done]


def _alike(runs: Sequence[Run], varies: Sequence[str]) -> None:
    """Raise where runs differ in what is not varied, or were scored on different examples."""
    first, settings = runs[0], _split(runs[0], varies)[1]
    firsts: dict[tuple[bool, int], Run] = {}
    methods: dict[str, Run] = {}
    for run in runs:
        own = _split(run, varies)[1]
        keys = [k for k in sorted(settings | own) if settings.get(k) != own.get(k)]
        if keys:
            raise ValueError(
                f"{first.folder} and {run.folder} are not to be compared: {keys[0]} is "
                f"{settings.get(keys[0], 'absent')} in one and {own.get(keys[0], 'absent')} in the "
                f"other (where a study varies it: --varies={keys[0]})"
            )
        same = firsts.setdefault((run.held_out, run.number[1]), run)
        if run.record.weights_digest != first.record.weights_digest:
            raise ValueError(f"{first.folder} and {run.folder} began from different weights")
        if run.record.data_digest != same.record.data_digest:
            raise ValueError(f"{same.folder} and {run.folder} had different examples")
        other = methods.setdefault(_key(run), run)
        for section, key in KEY:
            one, two = (each.record.config[section][key] for each in (other, run))
            if one != two:
                raise ValueError(
                    f"{other.folder} and {run.folder} are of one method, '{_key(run)}', but "
                    f"{section}.{key} is {one} in one and {two} in the other"
                )


def _methods(
    runs: Sequence[Run], names: Mapping[str, str], varies: Sequence[str], held_out: bool
) -> tuple[Method, ...]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    order = [key for key in (*names, *METHODS) if key in found] + natural(found)
    return tuple(
        _method(key, _label(found[key][0], names), found[key], varies, held_out)
        for key in dict.fromkeys(order)
    )


def _method(
    key: str, label: str, runs: Sequence[Run], varies: Sequence[str], held_out: bool
) -> Method:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_split(run, varies)[0], sort_keys=True), []).append(run)
    settings = []
    for values, own in groups.items():
        parts = [[r for r in own if r.held_out], [r for r in own if not r.held_out]]
        settings.append(
            Setting(json.loads(values), *(tuple(collect.one_of_each(p)) for p in parts))
        )
    settings.sort(key=lambda each: (each.rate, sorted(each.values.items())))
    phase = "held_out" if any(each.held_out for each in settings) else "development"
    tried = tuple(each for each in settings if getattr(each, phase))
    chosen = best([(each, getattr(each, phase)) for each in tried])
    scored = "held_out" if held_out else "development"
    chosen_on = "held-out" if phase != scored else "scored"
    if len(tried) == 1:
        chosen_on = "nothing"
    own_runs = () if chosen is None else getattr(chosen, scored)
    return Method(key, label, tuple(settings), tried, chosen, chosen_on, own_runs)


def best(tried: Sequence[tuple[Setting, Sequence[Run]]]) -> Setting | None:
    """The setting of the best mean score, the first of equal ones; None where none has a score.

    A setting that diverged with any seed comes after all that did not; other failures say nothing
    of a setting.
    """
    found, top = None, (True, -math.inf)
    for setting, runs in tried:
        scores = [saved_score(run) for run in runs if run.completed]
        known = [score for score in scores if score is not None]
        stable = all(run.record.status != "diverged" for run in runs)
        if known and (found is None or (stable, statistics.fmean(known)) > top):
            found, top = setting, (stable, statistics.fmean(known))
    return found
