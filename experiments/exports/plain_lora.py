"""What the formats of plain LoRA share: which runs they take, and what an SVD has cut off.

Which adapters are plain LoRA, `lora_jax.interchange.save_plain_lora` knows.
"""

import contextlib
from collections.abc import Iterator, Mapping

from configs.settings import TextConfig
from experiments.exports.base_model import require_published_base
from experiments.runs.finished_run import FinishedRun
from lora_jax.table import Table


@contextlib.contextmanager
def refusals_of(flag: str) -> Iterator[None]:
    """Begin what the library refuses with the flag that asked for it, and say which flags help."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        cut = ", and --svd_rank=R cuts it to rank R and says the error" * ("svd_rank" in said)
        way_out = "" if "--as=" in said else f"; --as=merged writes the model instead{cut}"
        raise ValueError(f"{flag}: {said}{way_out}") from None


def require_for_servers(run: FinishedRun) -> None:
    """Raise a ValueError of one line unless a run is of a language model on a published base."""
    if not isinstance(run.config, TextConfig):
        raise ValueError(
            f"the run's model is a classifier ({run.shape.model_type}), and this is for language "
            "models; --as=merged, or --as=peft --for=peft"
        )
    require_published_base(run)


def svd_lines(errors: Mapping[str, float]) -> list[str]:
    """A table of the relative error that the SVD makes in each weight's update."""
    rows = [(name, f"{error:.2%}") for name, error in errors.items()]
    if not rows:
        return []
    return Table(("weight", "relative error of its update"), rows).to_text().splitlines()
