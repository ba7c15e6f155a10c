"""The runs that successive halving trained, some of which it stopped early."""

from collections.abc import Sequence

from experiments.analysis.choose_methods import Method
from experiments.analysis.recorded_runs import Run


def halved(method: Method) -> list[Run]:
    """The tried runs of a method that reached a rung of successive halving."""
    return [run for each in method.tried for run in each.of(method.phase) if run.record.rungs]


def any_stopped(methods: Sequence[Method]) -> bool:
    """Whether a run was stopped early, so that numbers of runs say too much of what was spent."""
    return any(run.record.status == "stopped" for each in methods for run in halved(each))
