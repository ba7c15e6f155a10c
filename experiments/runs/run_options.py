"""How the trials of a program are trained, besides their settings."""

import dataclasses
from collections.abc import Collection

from experiments.tracking.tracking import NONE as NO_TRACKERS, Track
from lora_jax.training.trial_program import Execution


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How trials are trained; nothing here decides a result, so it is not part of a config."""

    execution: Execution | None = None
    """How trials that share a program step; None for the way that ends first."""
    retry: bool = False
    """Whether to train diverged trials again."""
    audit: bool = True
    """Whether to compare the compiled step with NumPy's before it trains."""
    halving: int = 0
    """Of so many trials, one goes on at each rung (`halving`); 0: all train to the end."""
    track: Track = NO_TRACKERS
    """The trackers that get the metrics, too."""

    @property
    def final(self) -> Collection[str]:
        """The statuses of trials that are not trained again."""
        ended = ("completed",) if self.retry else ("completed", "diverged")
        return (*ended, "stopped") if self.halving else ended


USUAL = RunOptions()
