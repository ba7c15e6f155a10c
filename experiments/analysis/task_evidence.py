"""What each task of a study can show: whether its reference beats what needs no adaptation.

If training with the reference does not beat the untrained model, a head alone and the constant
answer by more than its noise, then the task shows nothing about adaptation, and neither do the
differences between methods on it. Rows whose models give the same outputs show nothing either.

`experiments.studies.untrained` scores the untrained models and writes `untrained.json`, which is
sealed, and their outputs, `untrained.npz`, beside `study.json`.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.settings import TextConfig
from experiments.analysis import scored_examples
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.collect_runs import RunNumber
from experiments.analysis.gains import gains
from experiments.analysis.recorded_runs import REGISTRATION, Run, scale
from experiments.analysis.scored_examples import require_scores
from experiments.analysis.significance import Estimate
from experiments.runs.predictions import Predictions, parts_of
from lora_jax.data.metrics import label_metrics
from lora_jax.files import archives, json_text
from lora_jax.records import seal


def one_answer(contest: Contest) -> Predictions | None:
    """The outputs of always giving the most frequent answer, (examples, classes).

    None if answers are not classes, if an example is a choice among several texts, or if no run
    kept its predictions, which hold the labels.
    """
    for run in (run for method in contest.methods for run in method.runs if run.completed):
        part = run.predictions().get("validation")
        if isinstance(run.config, TextConfig) or part is None or part.labels is None:
            continue
        classes = part.outputs.shape[1]
        if classes < 2 or scored_examples.choices_of(run) > 1:
            return None
        counts = np.bincount(part.labels.astype(int), minlength=classes)
        return Predictions(
            np.tile(np.eye(classes)[counts.argmax()], (len(part.labels), 1)), part.labels
        )
    return None


def most_frequent(contest: Contest) -> float | None:
    """The accuracy of always giving the most frequent answer, in the unit of the scores.

    None if the metric is another one, or as for `one_answer`.
    """
    if contest.metric != "accuracy" or (constant := one_answer(contest)) is None:
        return None
    right = label_metrics.score(["accuracy"], constant.outputs, constant.labels)
    return scale("accuracy") * right["accuracy"]


SAME = 0.01
"""Two methods are the same if their outputs differ by less than this share of their spread.

Of the committed runs, adapters that do nothing differ from the head alone by 0.4 to 0.7%. Those
that do something differ from other methods by 3% or more, but for LoRA in float32 from LoRA.
"""


def equal_rows(contest: Contest) -> list[tuple[Method, ...]]:
    """The methods whose predictions agree on all examples and common seeds, in groups of several.

    Only the share of a class matters: what is added to all classes of an example changes nothing. A
    method joins the first group whose first method it agrees with. One without predictions of two
    seeds joins none.
    """
    groups: list[list[tuple[Method, Mapping[RunNumber, np.ndarray]]]] = []
    for method in contest.methods:
        own = dict(_outputs(method))
        for group in groups:
            if _agree(group[0][1], own):
                group.append((method, own))
                break
        else:
            groups.append([(method, own)])
    return [tuple(method for method, _ in group) for group in groups if len(group) > 1]


def _outputs(method: Method) -> Iterator[tuple[RunNumber, np.ndarray]]:
    """The centred outputs of each scored run, (examples, classes or 1)."""
    for run in method.runs:
        part = run.predictions().get("validation") if run.completed else None
        if part is not None:
            outputs = np.asarray(part.outputs, np.float64)
            classes = outputs.shape[1] > 1
            yield run.number, outputs - outputs.mean(1, keepdims=True) if classes else outputs


def _agree(one: Mapping[RunNumber, np.ndarray], other: Mapping[RunNumber, np.ndarray]) -> bool:
    common = one.keys() & other.keys()
    if len(common) < 2 or any(one[each].shape != other[each].shape for each in common):
        return False
    apart = np.mean([np.mean((one[each] - other[each]) ** 2) for each in common])
    spread = np.mean([np.var(one[each], axis=0).mean() for each in common])
    return bool(apart <= SAME**2 * spread)


UNTRAINED_FILE, UNTRAINED_OUTPUTS = "untrained.json", "untrained.npz"


@dataclasses.dataclass(frozen=True)
class Untrained:
    """The untrained model on one task."""

    metric: str
    """The main one."""
    how: str
    """How it was scored, or why it has no score, in words."""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """All metrics, in the unit of records; empty if it has no score."""
    parts: Mapping[str, Predictions] = dataclasses.field(default_factory=dict)
    """Its outputs by part (`validation`, ...), as a run keeps them."""
    data_digest: str = ""
    """As in the record of a run with the same config."""
    weights_digest: str = ""

    @property
    def score(self) -> float | None:
        """The main metric, in the unit of records; None if it has no score."""
        return self.scores.get(self.metric)

    @property
    def predictions(self) -> Predictions | None:
        """The outputs for the validation part; None if it has no score."""
        return self.parts.get("validation")


def read_untrained(folder: Path) -> dict[str, Untrained]:
    """The untrained models in the folder of a study, by task; empty if they were not scored.

    Raises:
      ValueError: a file was changed or damaged, belongs to another study, or the outputs do not
        give the scores.
    """
    path = folder / UNTRAINED_FILE
    if not path.exists():
        return {}
    content = seal.read(path)
    if content["registration"] != json_text.read_object(folder / REGISTRATION)["digest"]:
        raise ValueError(f"{path} belongs to another {REGISTRATION} than the one beside it")
    try:
        outputs = parts_of(archives.read_arrays(folder / UNTRAINED_OUTPUTS))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{folder / UNTRAINED_OUTPUTS} cannot be read ({error}): delete {path} and give "
            "experiments.tune --untrained, which writes both again"
        ) from error
    found = {}
    for task, each in content["tasks"].items():
        own = {name: outputs[f"{task}/{name}"] for name in each["examples"]}
        require_scores(own, each["scores"], f"{folder / UNTRAINED_OUTPUTS}: {task}'s")
        digests = each.get("data_digest", ""), each.get("weights_digest", "")
        found[task] = Untrained(each["metric"], each["how"], each["scores"], own, *digests)
    return found


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
            gain = f"{best.gain.mean:+z.1f} [{best.gain.low:+z.1f}, {best.gain.high:+z.1f}]"
            text += f" The gain over {best.name} is {gain}."
        return text + f" {self.blind}, so this task shows nothing about adaptation." * bool(
            self.blind
        )

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
    return tuple(
        _of_task(each, own, untrained.get(each.task))
        for each in contests
        for own in each.methods
        if own.key == reference and own.counted()
    )


def _of_task(contest: Contest, own: Method, untrained: Predictions | None) -> Evidence:
    given = {UNTRAINED: untrained, ONE_ANSWER: one_answer(contest)}
    others = [_never_trained(own, name, contest, part) for name, part in given.items() if part]
    others += [each for each in contest.methods if each.key == HEAD != own.key]
    compared = dataclasses.replace(contest, methods=(own, *others))
    examples = scored_examples.values([compared])
    over = gains([compared], reference=own.key, margin=1.0, examples=examples)
    means = {method.key: method.counted() for method in others}
    floors = tuple(
        Floor(each.label, statistics.fmean(means[each.key]), -each.by_task[contest.task])
        for each in over.methods
    )
    score = statistics.fmean(own.counted())
    return Evidence(contest.task, contest.task_title, own.label, score, floors)


def _never_trained(own: Method, name: str, contest: Contest, part: Predictions) -> Method:
    """A method whose runs have the seeds of the reference, and all the same predictions."""
    metric = contest.metric
    scores = label_metrics.score(
        [metric], part.outputs, part.labels, scored_examples.choices_of(own.runs[0])
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
