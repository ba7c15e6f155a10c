"""How much each method's differences from a reference vary from seed to seed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from experiments.analysis.choose_methods import Contest
from experiments.analysis.mean_difference import MeanDifference, over_seeds, over_tasks
from experiments.analysis.paired_scores import Scored, common, scored
from experiments.analysis.pairing import Paired, bought, together


@dataclasses.dataclass(frozen=True)
class Noise:
    """That of one method, on the tasks where it has two seeds in common with the reference."""

    label: str
    by_task: Mapping[str, MeanDifference]
    """The paired differences on each task, by its title."""
    pairing: Paired

    @property
    def deviations(self) -> dict[str, float]:
        """The sd of the paired differences in points, by task; 0 if they do not vary."""
        return {task: (own.error or 0.0) * math.sqrt(own.n) for task, own in self.by_task.items()}

    @property
    def mean(self) -> MeanDifference:
        """That over the tasks, as a report of gains has it."""
        return over_tasks(list(self.by_task.values()))


def noise(contests: Sequence[Contest], reference: str) -> list[Noise]:
    """The noise of each method that has two seeds in common with the reference on any task.

    Args:
      contests: one for each task, of one model.
      reference: the key of a method.
    """
    scores: dict[str, dict[str, Scored]] = {}
    labels = {method.key: method.label for each in contests for method in each.methods}
    for contest in contests:
        for method in contest.methods:
            scores.setdefault(method.key, {})[contest.task_title] = scored(method)
    theirs, found = scores.pop(reference, {}), []
    for key, own in scores.items():
        pairs = {task: common(own[task], theirs[task])[:2] for task in own if task in theirs}
        known = {task: pair for task, pair in pairs.items() if len(pair[0]) > 1}
        if known:
            differences = {task: over_seeds(*pair) for task, pair in known.items()}
            paired = together([bought(*pair) for pair in known.values()])
            found.append(Noise(labels[key], differences, paired))
    return found
