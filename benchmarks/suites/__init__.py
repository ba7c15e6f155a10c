"""What is timed for each value of `--suite`."""

from benchmarks.suites import growth, inference, processes, training
from benchmarks.turns import Suite

SUITES: dict[str, Suite] = {
    "train": training.TRAIN,
    "methods": training.METHODS,
    "memory": training.MEMORY,
    "infer": inference.INFER,
    "generate": inference.GENERATE,
    "compile": training.COMPILE,
    "sweep": processes.SWEEP,
    "start": processes.START,
    "bank": inference.BANK,
    "scale": growth.SCALE,
    "gpu": growth.GPU,
}
