"""Which verdicts depend on one task, on a planted study where it is known."""

import numpy as np
from planted_scores import contest, study

from experiments.analysis.gains import changed_without_a_task, gains

NOISE = (0.3, 0.3, 0.3)
TASKS = ("cola", "mrpc", "rte")


def planted():
    """`lone` gains 4 points on RTE alone; `all` 2 on each task; `same` nothing."""
    effects = {"lone": 0.0, "all": 2.0, "same": 0.0}
    *others, rte = study(np.random.default_rng(0), NOISE, 20, effects, tasks=TASKS)
    scores = {each.key: list(each.scores().values()) for each in rte.methods}
    return [*others, contest("rte", scores | {"lone": [x + 4 for x in scores["lone"]]})]


def changed(made, tasks=3):
    def judge(contests):
        return gains(contests, reference="lora", margin=1.0, tests=3)

    return changed_without_a_task(made, judge(made), tasks, judge)


def test_a_gain_of_one_task_is_gone_without_it():
    made = planted()
    found = changed(made)
    assert list(found) == ["cola", "mrpc", "rte"]
    assert not found["cola"] and not found["mrpc"]
    (lone,) = found["rte"]
    assert (lone.key, lone.verdict) == ("lone", "equivalent")
    assert abs(lone.over_tasks.mean) < 0.3 and list(lone.by_task) == ["cola", "mrpc"]


def test_nothing_is_said_of_two_tasks_or_of_a_study_with_gaps():
    made = planted()
    assert changed(made[:2], tasks=2) is None
    assert changed(made, tasks=4) is None  # one is not trained yet
    gap = contest("rte", {"lora": [80.0, 81.0], "all": [82.0, 83.0]})
    assert changed([*made[:2], gap]) is None
