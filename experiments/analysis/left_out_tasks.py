"""Which verdicts of a study depend on a single one of its tasks."""

from collections.abc import Callable, Mapping, Sequence

from experiments.analysis.choose_methods import Contest
from experiments.analysis.gains import Gain, Gains

FEWEST = 3
"""Tasks of a study: with two, leaving one out leaves a single task, which is another question."""


def changed(
    contests: Sequence[Contest],
    found: Gains,
    tasks: int,
    judge: Callable[[Sequence[Contest]], Gains],
) -> Mapping[str, Sequence[Gain]] | None:
    """By left-out task, the gains over the others whose verdicts are not those over all tasks.

    Nothing is tested (None) if there are fewer than `FEWEST` tasks, or while any method lacks one.

    Args:
      contests: of which `found` was made.
      tasks: how many tasks the study has.
      judge: gives the gains of contests by the rules of the study.
    """
    if tasks < FEWEST or any(len(each.by_task) < tasks for each in found.methods):
        return None
    verdicts = {each.key: each.verdict for each in found.methods}
    changes = {}
    for task in found.tasks:
        others = judge([contest for contest in contests if contest.task != task])
        changes[task] = [each for each in others.methods if each.verdict != verdicts[each.key]]
    return changes
