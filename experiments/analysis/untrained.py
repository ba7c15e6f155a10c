"""What the model of each task of a study scored before any training, where it has a score.

`experiments.studies.untrained` writes it beside `study.json`: `untrained.json`, which is sealed,
and the outputs, `untrained.npz`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from experiments.analysis.recorded_runs import REGISTRATION
from experiments.analysis.score_check import require_scores
from experiments.runs.predictions import Predictions, parts_of
from lora_jax.files import archives, json_text
from lora_jax.records import sealed_file

FILE, OUTPUTS = "untrained.json", "untrained.npz"


@dataclasses.dataclass(frozen=True)
class Untrained:
    """The untrained model on one task."""

    task: str
    metric: str
    """The main one."""
    how: str
    """How it was scored, or why it has no score, in words."""
    scores: Mapping[str, float]
    """All metrics, in the unit of records; empty if it has no score."""
    parts: Mapping[str, Predictions]
    """Its outputs by part (`validation`, ...), as a run keeps them."""

    @property
    def score(self) -> float | None:
        """The main metric, in the unit of records; None if it has no score."""
        return self.scores.get(self.metric)

    @property
    def predictions(self) -> Predictions | None:
        """The outputs for the validation part; None if it has no score."""
        return self.parts.get("validation")


def read(folder: Path) -> dict[str, Untrained]:
    """The untrained models in the folder of a study, by task; empty if they were not scored.

    Raises:
      ValueError: a file was changed or damaged, is of another study, or the outputs do not give
        the scores.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    content = sealed_file.read(path)
    if content["registration"] != json_text.read_object(folder / REGISTRATION)["digest"]:
        raise ValueError(f"{path} is of another {REGISTRATION} than the one beside it")
    try:
        outputs = parts_of(archives.read_arrays(folder / OUTPUTS))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{folder / OUTPUTS} cannot be read ({error}): delete {path} and give "
            "experiments.tune --untrained, which writes both again"
        ) from error
    found = {}
    for task, each in content["tasks"].items():
        own = {name: outputs[f"{task}/{name}"] for name in each["examples"]}
        require_scores(own, each["scores"], f"{folder / OUTPUTS}: {task}'s")
        found[task] = Untrained(task, each["metric"], each["how"], each["scores"], own)
    return found
