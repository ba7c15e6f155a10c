"""The number that a search improves: a metric on examples held out from training."""

import math
from collections.abc import Sequence

from experiments.analysis.recorded_runs import saved_metrics
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.trials import Trial
from lora_jax.records import run_record
from lora_jax.training.loop_settings import Loop


def require_held_out(trial: Trial) -> None:
    """Raise a ValueError if a trial would be scored on the examples that a task is judged by."""
    if not trial.config.data.validation:
        raise ValueError(
            "--search chooses by examples held out from training, so that the "
            "development set stays unseen: set --config.data.validation=N, such as 400"
        )


def score(folder: SweepFolder, trial: Trial, loop: Loop) -> float | None:
    """The metric of a trial's saved adapter; None if it has none, as it did not complete."""
    path = folder.run(trial.name)
    record = run_record.read(path) if path.exists() else None
    if record is None or record.status != "completed" or record.config_digest != trial.digest:
        return None
    value = saved_metrics(record).get(loop.metric)
    return value if value is not None and math.isfinite(value) else None


def spent(folder: SweepFolder, trials: Sequence[Trial]) -> int:
    """The training steps of all trials that have a record, those taken out early among them."""
    records = (run_record.read(path) for each in trials if (path := folder.run(each.name)).exists())
    return sum(record.steps for record in records if record is not None)
