"""How sure the choice of a method's setting is: its lead, and how often resamples repeat it.

The lead is over the next best of the settings that were tried. Resamples are of the examples that
chose, drawn with replacement, the same for all settings of a method; each chooses by the same rule,
the best mean over the runs and the lower rate of equal ones. So they contain the noise of these
examples. They contain neither that of training seeds nor that of which rates were tried.
"""

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from experiments.analysis import bootstrap, collect_runs, scored_examples
from experiments.analysis.choose_methods import RATE, Contest, Method, Setting, by_number
from experiments.analysis.recorded_runs import mean_score, scale, sign, unit
from lora_jax.messages import count

RESAMPLES = 2_000
"""Enough for a share: its standard error is 1 percentage point at most."""
CLOSE = 1.0
"""A lead of fewer points is named close."""
COLLAPSE = 10.0
"""A setting collapsed if it diverged, or scores so many points less than the chosen one."""
NAMED = 4
"""Of more methods on a task, only the number is given."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is known of the choice of a method's setting.

    A setting has a score if all its runs completed. `lead` is by how much the chosen one is better
    than the next best, in the unit of the metric; None if no other has a score. `chosen_in` is the
    share of resamples that choose the same; None without the predictions of all these runs.
    `below_collapse` is whether the setting of the next higher rate collapsed.
    """

    lead: float | None = None
    chosen_in: float | None = None
    below_collapse: bool = False


def of_contest(contest: Contest, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Choice]:
    """The choice of each method of a contest, by its key.

    Raises:
      ValueError: the predictions of two runs with the same seed are of different examples, or
        disagree with a record.
    """
    return {
        method.key: of_method(method, contest.metric, resamples, seed) for method in contest.methods
    }


def of_method(method: Method, metric: str, resamples: int = RESAMPLES, seed: int = 0) -> Choice:
    """The choice of a method's setting among those tried; arguments are as for `of_contest`."""
    scored = [
        (each, sign(metric) * mean)
        for each in method.tried
        if (mean := _mean(each, method.phase)) is not None
    ]
    at = next((n for n, (each, _) in enumerate(scored) if each is method.chosen), None)
    if at is None:
        return Choice()
    chosen, best = scored[at]
    others = [mean for each, mean in scored if each is not chosen]
    if not others:
        return Choice(below_collapse=_below_collapse(method, chosen, best, metric))
    return Choice(
        round(best - max(others), 9),
        _chosen_in(method, [each for each, _ in scored], at, metric, resamples, seed),
        _below_collapse(method, chosen, best, metric),
    )


def _mean(setting: Setting, phase: str) -> float | None:
    """The mean score by which a setting is chosen; None if a run of it did not complete."""
    runs, scores = setting.of(phase), by_number(setting.of(phase))
    if not runs or len(scores) < len(runs) or setting.lost(phase):
        return None
    return mean_score(collect_runs.means_of_draws(scores).tolist())


def _below_collapse(method: Method, chosen: Setting, best: float, metric: str) -> bool:
    """Whether the setting with the next higher rate, and otherwise the same values, collapsed.

    Args:
      best: the mean of the chosen one, with the `sign` of the metric.
    """

    def rest(setting: Setting) -> dict[str, str]:
        return {key: value for key, value in setting.values.items() if key != RATE}

    higher = [e for e in method.tried if e.rate > chosen.rate and rest(e) == rest(chosen)]
    if not higher:
        return False
    mean = _mean(higher[0], method.phase)
    diverged = any(run.record.status == "diverged" for run in higher[0].of(method.phase))
    return diverged or (mean is not None and best - sign(metric) * mean > COLLAPSE)


def _chosen_in(
    method: Method,
    settings: Sequence[Setting],
    at: int,
    metric: str,
    resamples: int,
    seed: int,
) -> float | None:
    """The share of resamples that choose the setting at a place of those with a score."""
    runs = [{run.number: run for run in each.of(method.phase)} for each in settings]
    if any(each.keys() != runs[0].keys() for each in runs):
        return None
    drawn = {}
    for number in runs[0]:
        kept = scored_examples.read(each[number] for each in runs)
        if len(kept) < len(runs):
            return None
        drawn[number] = bootstrap.replicates(
            metric,
            [each.outputs for each in kept],
            kept[0].labels,
            choices=scored_examples.choices_of(kept[0].run),
            resamples=resamples,
            seed=seed + number[1],
        )
    # rounded as `recorded_runs.mean_score`, so that equal means are equal here, too
    means = np.round(sign(metric) * scale(metric) * collect_runs.means_of_draws(drawn).mean(0), 9)
    return float(np.mean(means.argmax(0) == at))


def notes(made: Sequence[Contest], choices: Sequence[Mapping[str, Choice]]) -> Iterator[str]:
    """A note on each study whose methods tried several rates and are scored in points.

    Args:
      choices: those of each contest (`of_contest`).
    """
    cells: dict[str, list[_Cell]] = {}
    for contest, known in zip(made, choices, strict=True):
        if unit(contest.metric) == "points":
            own = [(contest.task_title, each, known[each.key]) for each in contest.methods]
            cells.setdefault(contest.table, []).extend(e for e in own if e[2].lead is not None)
    for table, own in cells.items():
        if own:
            yield f"{table}: {' '.join(_sentences(own))}"


_Cell = tuple[str, Method, Choice]
"""The title of a task, a method, and how it was chosen there."""


def _sentences(cells: Sequence[_Cell]) -> Iterator[str]:
    rates = [sorted({each.rate for each in method.tried}) for _, method, _ in cells]
    steps = [high / low for own in rates for low, high in itertools.pairwise(own)]
    apart = f", rates a factor of {statistics.median(steps):.2g} apart" if steps else ""
    alone = all(len(own) == len(each.tried) for own, (_, each, _) in zip(rates, cells, strict=True))
    what = "learning rate" if alone else "setting"
    runs = max(len(each.of(method.phase)) for _, method, _ in cells for each in method.tried)
    yield (
        f"Each method uses its best {what} of those tried{apart}, chosen by "
        f"{count(runs, 'run')} of each."
    )
    tasks = Counter(task for task, _, _ in cells)
    close = Counter(task for task, _, own in cells if own.lead is not None and own.lead < CLOSE)
    where = ", ".join(f"{task} {close[task]} of {number}" for task, number in tasks.items())
    yield (
        f"In {close.total()} of {len(cells)} cells (a method on a task), the chosen one leads the "
        f"next best by less than a point: {where}."
    )
    fallen: dict[str, list[str]] = {}
    for task, method, own in cells:
        if own.below_collapse:
            fallen.setdefault(task, []).append(method.label)
    if fallen:
        texts = [
            f"{task} ({', '.join(own) if len(own) <= NAMED else count(len(own), 'method')})"
            for task, own in fallen.items()
        ]
        yield (
            f"The next higher rate diverged, or lost more than {COLLAPSE:.0f} points, on "
            f"{', '.join(texts)}: there, the choice is one step from a collapse."
        )
    shares = [own.chosen_in for _, _, own in cells if own.chosen_in is not None]
    if shares:
        yield (
            "Where the examples that chose are resampled, the same choice is made in "
            f"{statistics.median(shares):.0%} of resamples at the median of "
            f"{count(len(shares), 'cell')}, and in {min(shares):.0%} at the least."
        )
    if len(shares) < len(cells):
        where = f" of {len(cells) - len(shares)} cells" if shares else ""
        yield (
            f"Predictions of tuning runs{where} were not kept, so the noise of the choice is not "
            f"estimated{' there' * bool(shares)}."
        )
