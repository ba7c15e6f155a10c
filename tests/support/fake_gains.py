"""Gains of a study that never was: a method for each verdict."""

from experiments.analysis.gains import Gain
from experiments.analysis.significance import Estimate

TASKS = ("cola", "sst2")
MEANS = {"better": 2.0, "worse": -3.0, "equivalent": 0.1, "undecided": -0.4}


def estimate(mean, half=0.5, n=20):
    return Estimate(mean, mean - half, mean + half, 0.25, n)


def gain(key, verdict, mean=None):
    centre = MEANS[verdict] if mean is None else mean
    by_task = {task: estimate(centre + at, 1.0) for at, task in enumerate(TASKS)}
    whole = estimate(centre + 0.5)
    within = 0.02 if verdict == "equivalent" else 0.9
    return Gain(
        key, key.upper(), by_task, whole, None, None, 0.0004, within, centre + 0.9, 0.75, verdict
    )  # fmt: skip


GAINS = [gain("a", "worse"), gain("b", "better"), gain("c", "equivalent"), gain("d", "undecided")]
