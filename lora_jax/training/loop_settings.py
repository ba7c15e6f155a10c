"""When the training loop logs, evaluates and saves, and which evaluation is the best."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Loop:
    """How many steps the loop runs, and how often it logs, evaluates and saves (0: at the end)."""

    steps: int
    log_every: int = 10
    evaluate_every: int = 0
    """Every evaluation also saves a checkpoint, so that the best one can be kept."""
    checkpoint_every: int = 0
    metric: str = "accuracy"
    """The metric that chooses the best evaluation."""
    mode: Literal["max", "min"] = "max"
    evaluations: int = 0
    """The number of evaluations, spread evenly: with the number of epochs, one for each epoch."""
    target: float | None = None
    """A score of `metric`; the outcome notes when it is first reached."""
    best_from: int = 0
    """The first step whose evaluation may be the best (that of the last step always may)."""
    evaluate_first: bool = False
    """Whether the weights are evaluated before the first step, too."""

    def due(self, every: int, step: int) -> bool:
        return step == self.steps or (every > 0 and step % every == 0)

    def evaluates(self, step: int) -> bool:
        if not self.steps:
            return False
        passed, before = (self.evaluations * each // self.steps for each in (step, step - 1))
        return passed > before or self.due(self.evaluate_every, step)

    def reached(self, values: dict[str, float]) -> bool:
        """Whether an evaluation is as good as the target."""
        if self.target is None:
            return False
        value = values[self.metric]
        return value >= self.target if self.mode == "max" else value <= self.target

    def eligible(self, step: int) -> bool:
        """Whether the evaluation of a step may be the best."""
        return step >= min(self.best_from, self.steps)

    def better(self, new: dict[str, float], old: dict[str, float]) -> bool:
        if not old:
            return True
        new_value, old_value = new[self.metric], old[self.metric]
        return new_value > old_value if self.mode == "max" else new_value < old_value
