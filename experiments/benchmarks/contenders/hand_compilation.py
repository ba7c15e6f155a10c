"""The tracing and compilation of a training step that is written by hand."""

from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.hand_step import training
from experiments.benchmarks.contenders.made import Made, compilation


def make(case: Case) -> Made:
    return compilation(case, *training(case))
