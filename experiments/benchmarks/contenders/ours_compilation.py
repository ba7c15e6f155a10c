"""The tracing and compilation of a training step of this project's."""

from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made, compilation
from experiments.benchmarks.contenders.ours_step import training


def make(case: Case) -> Made:
    return compilation(case, *training(case))
