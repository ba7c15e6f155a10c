"""What each task of a study can show: whether its reference beats what needs no adaptation.

If training with the reference does not beat the untrained model, a head alone and the constant
answer by more than its noise, then the task shows nothing about adaptation, and neither do the
differences between methods on it.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from experiments.analysis import chance, score_check, scored_examples
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.gains import Estimate, gains
from experiments.analysis.recorded_runs import Run
from experiments.runs.predictions import Predictions
from lora_jax.metrics import label_metrics

HEAD = "head_only"
"""The row that trains a head alone, if a study has one."""
UNTRAINED, ONE_ANSWER = "the untrained model", "the most frequent answer"


@dataclasses.dataclass(frozen=True)
class Floor:
    """What needs no adaptation, and how much better the reference is, in points."""

    name: str
    score: float
    gain: Estimate

    @property
    def is_beaten(self) -> bool:
        """Whether the reference is better by more than the noise; without one, whether it is."""
        low = self.gain.mean if self.gain.low is None else self.gain.low
        return low > 0


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A task, the mean score of the reference there, and the floors that it must beat."""

    task: str
    title: str
    reference: str
    score: float
    floors: tuple[Floor, ...]

    @property
    def best(self) -> Floor | None:
        """The floor with the highest score."""
        return max(self.floors, key=lambda each: each.score, default=None)

    @property
    def said(self) -> str:
        """All of it in a sentence or two."""
        floors = "".join(f", {each.name} {each.score:.1f}" for each in self.floors)
        text = f"{self.title}: {self.reference} {self.score:.1f}{floors}."
        if (best := self.best) is not None and best.gain.low is not None:
            gain = best.gain
            text += f" The gain over {best.name} is {gain.mean:+z.1f} [{gain.low:+z.1f}, "
            text += f"{gain.high:+z.1f}]."
        blind = f" {self.blind}, so this task shows nothing about adaptation."
        return text + blind * bool(self.blind)

    @property
    def shows(self) -> str:
        """What it can show, in words."""
        if not self.floors:
            return "not known"
        if self.blind:
            return "nothing about adaptation"
        alone = {each.name for each in self.floors} == {ONE_ANSWER}
        return "differences" + ", if they beat a head alone, which was not trained" * alone

    @property
    def blind(self) -> str:
        """Why the task shows nothing, without a full stop; empty if it shows something."""
        missed = [each for each in self.floors if not each.is_beaten]
        if not missed:
            return ""
        worst = max(missed, key=lambda each: each.score)
        below = worst.gain.high is not None and worst.gain.high < 0
        how = "ends below" if below else "is not shown to beat"
        numbers = f"{self.score:.1f} against {worst.score:.1f}"
        return f"On {self.title}, {self.reference} {how} {worst.name} ({numbers})"


@dataclasses.dataclass(frozen=True)
class _Fixed(Run):
    """A run as one that did not train would have left it: with these predictions."""

    parts: Mapping[str, Predictions] = dataclasses.field(default_factory=dict)

    def predictions(self) -> dict[str, Predictions]:
        return dict(self.parts)


def evidence(
    contests: Sequence[Contest], reference: str, untrained: Mapping[str, Predictions | None]
) -> tuple[Evidence, ...]:
    """What each task can show; tasks without a score of the reference are left out.

    Args:
      contests: one for each task of a study.
      reference: the key of the method that others are compared with.
      untrained: the predictions of the untrained model for the scored examples, by task; None
        for a model that has no score.
    """
    found = (_of_task(each, reference, untrained.get(each.task)) for each in contests)
    return tuple(each for each in found if each is not None)


def _of_task(contest: Contest, reference: str, untrained: Predictions | None) -> Evidence | None:
    by_key = {method.key: method for method in contest.methods}
    own = by_key.get(reference)
    if own is None or not (scores := own.counted()):
        return None
    given = {UNTRAINED: untrained, ONE_ANSWER: chance.one_answer(contest)}
    others = [_never_trained(own, name, contest, part) for name, part in given.items() if part]
    if HEAD in by_key and reference != HEAD:
        others.append(by_key[HEAD])
    compared = dataclasses.replace(contest, methods=(own, *others))
    examples = scored_examples.values([compared])
    over = gains([compared], reference=reference, margin=1.0, examples=examples)
    floors = [
        Floor(each.label, statistics.fmean(method.counted()), _turned(each.by_task[contest.task]))
        for each in over.methods
        for method in others
        if method.key == each.key
    ]
    mean = statistics.fmean(scores)
    return Evidence(contest.task, contest.task_title, own.label, mean, tuple(floors))


def _never_trained(own: Method, name: str, contest: Contest, part: Predictions) -> Method:
    """A method whose runs have the seeds of the reference, and all the same predictions."""
    metric = contest.metric
    scores = label_metrics.score(
        [metric], part.outputs, part.labels, score_check.choices(own.runs[0])
    )
    runs = tuple(
        _Fixed(
            run.folder,
            dataclasses.replace(run.record, metrics_best=scores, metrics_last=scores),
            run.sealed,
            parts={"validation": part},
        )
        for run in own.runs
        if run.completed
    )
    return dataclasses.replace(own, key=name, label=name, runs=runs)


def _turned(found: Estimate) -> Estimate:
    """The gain of the reference over a method, from that of the method over the reference."""
    low = None if found.high is None else -found.high
    high = None if found.low is None else -found.low
    return dataclasses.replace(found, mean=-found.mean, low=low, high=high)
