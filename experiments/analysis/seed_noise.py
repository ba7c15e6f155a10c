"""How much each method's differences from a reference vary with seeds and scored examples."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from experiments.analysis import crossed, power
from experiments.analysis.choose_methods import Contest
from experiments.analysis.mean_difference import MeanDifference, over_seeds, over_tasks
from experiments.analysis.paired_scores import Scored, common, common_examples, scored
from experiments.analysis.pairing import Paired, bought, together
from experiments.analysis.scored_examples import Values


@dataclasses.dataclass(frozen=True)
class Noise:
    """That of one method, on the tasks where it has two seeds in common with the reference."""

    key: str
    label: str
    by_task: Mapping[str, MeanDifference]
    """The paired differences on each task, by its title, as `gains` tests them."""
    deviations: Mapping[str, float]
    """The sd of the paired differences over seeds in points, by task; 0 if they do not vary."""
    parts: Mapping[str, power.Task]
    """What their noise is of, by task; of seeds alone where the values of examples are missing."""
    pairing: Paired

    @property
    def mean(self) -> MeanDifference:
        """That over the tasks, as a report of gains has it."""
        return over_tasks(list(self.by_task.values()))


def noise(
    contests: Sequence[Contest],
    reference: str,
    examples: Mapping[str, Values] = MappingProxyType({}),
) -> list[Noise]:
    """The noise of each method that has two seeds in common with the reference on any task.

    Args:
      contests: one for each task, of one model.
      reference: the key of a method.
      examples: as for `gains.gains`.
    """
    scores: dict[str, dict[str, Scored]] = {}
    labels = {method.key: method.label for each in contests for method in each.methods}
    for contest in contests:
        for method in contest.methods:
            scores.setdefault(method.key, {})[contest.task_title] = scored(method)
    values = {contest.task_title: examples.get(contest.task, {}) for contest in contests}
    theirs, found = scores.pop(reference, {}), []
    for key, own in scores.items():
        pairs = {task: common(own[task], theirs[task])[:2] for task in own if task in theirs}
        known = {task: pair for task, pair in pairs.items() if len(pair[0]) > 1}
        if not known:
            continue
        seeds = {task: over_seeds(*pair) for task, pair in known.items()}
        by_task, sd = dict(seeds), {t: (e.error or 0.0) * math.sqrt(e.n) for t, e in seeds.items()}
        parts = {task: power.Task(own) for task, own in sd.items()}
        for task, (first, second) in known.items():
            both, _ = common_examples(own[task], theirs[task], values[task])
            if both is not None:
                by_task[task] = crossed.over_both(first, second, *both)
                parts[task] = power.Task.of(crossed.squares(first - second, both[0] - both[1]))
        paired = together([bought(*pair) for pair in known.values()])
        found.append(Noise(key, labels[key], by_task, sd, parts, paired))
    return found
