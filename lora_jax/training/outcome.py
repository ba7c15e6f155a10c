"""The results of a run so far."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lora_jax.compiled.audit import Audit
from lora_jax.training.loop_settings import Loop


@dataclasses.dataclass
class Outcome:
    """The results of a run so far; saved in every checkpoint and continued from there."""

    steps: int = 0
    seconds: float = 0.0
    """Seconds of training, with compilation, without evaluation; a continued run adds to them."""
    metrics_last: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics_best: dict[str, float] = dataclasses.field(default_factory=dict)
    best_step: int | None = None
    target_step: int | None = None
    """The step of the first evaluation as good as `Loop.target`."""
    target_seconds: float | None = None
    """The seconds of training until that evaluation."""
    evaluations: list[dict[str, float]] | None = dataclasses.field(default_factory=list)
    """Step, seconds until then and `Loop.metric` of each evaluation. None if the run continued from
    an old checkpoint, which lacks the first ones."""
    diverged: bool = False
    metrics_first: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics before the first step; empty if they were not asked for."""
    interrupted: bool = False
    """Whether this process was asked to end; never set in a checkpoint."""
    metrics_checksum: int | None = None
    """`Metrics.checksum` when a checkpoint was saved; None in one that does not say it."""
    audit: dict[str, Any] | None = None
    """What `lora_jax.compiled.audit` found before the first step; None if it compared nothing."""

    def record_audit(self, found: Audit | None) -> None:
        """Record an audit, and add its seconds of compilation, which training need not repeat."""
        if found is not None:
            self.audit, self.seconds = found.values(), self.seconds + found.compiling

    def record_evaluation(self, loop: Loop, values: dict[str, float]) -> None:
        """Record the evaluation of the present step."""
        self.metrics_last = values
        self.diverged = not all_finite(values)
        if self.diverged:
            return
        if self.evaluations is not None:
            score = values[loop.metric]
            self.evaluations.append({"step": self.steps, "seconds": self.seconds, "score": score})
        if loop.eligible(self.steps) and loop.better(values, self.metrics_best):
            self.metrics_best, self.best_step = values, self.steps
        if self.target_step is None and loop.reached(values):
            self.target_step, self.target_seconds = self.steps, self.seconds


def all_finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))
