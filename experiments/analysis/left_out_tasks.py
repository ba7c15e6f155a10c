"""Which verdicts of a study depend on a single one of its tasks."""

from collections.abc import Mapping, Sequence

from experiments.analysis.choose_methods import Contest
from experiments.analysis.gains import Gain, Gains, gains

FEWEST = 3
"""Tasks of a study: with two, leaving one out leaves a single task, which is another question."""


def changed(
    contests: Sequence[Contest], found: Gains, tests: int, tasks: int
) -> Mapping[str, Sequence[Gain]] | None:
    """By left-out task, the gains over the others whose verdicts are not those over all tasks.

    The rules are those of the study. Nothing is tested (None) if it has fewer than `FEWEST` tasks,
    or while any method lacks one of them.

    Args:
      contests: of which `found` was made.
      tests: how many members each family of tests has at least.
      tasks: how many tasks the study has.
    """
    if tasks < FEWEST or any(len(each.by_task) < tasks for each in found.methods):
        return None
    verdicts = {each.key: each.verdict for each in found.methods}
    changes = {}
    for task in found.tasks:
        others = gains(
            [contest for contest in contests if contest.task != task],
            reference=found.reference_key,
            margin=found.margin,
            level=found.level,
            tests=tests,
        )
        changes[task] = [each for each in others.methods if each.verdict != verdicts[each.key]]
    return changes
