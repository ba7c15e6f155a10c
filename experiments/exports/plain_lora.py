"""What the formats of plain LoRA share: which runs they take, and what an SVD has cut off."""

import contextlib
from collections.abc import Iterator, Mapping

from configs.settings import TextConfig
from experiments.exports.base_model import require_published_base
from experiments.runs.finished_run import FinishedRun
from lora_jax.interchange.families import names_of
from lora_jax.interchange.matrices import lookup, matrices
from lora_jax.text_table import text_table


@contextlib.contextmanager
def refusals_of(flag: str) -> Iterator[None]:
    """Begin what the library refuses with the flag that asked for it, and name the way out."""
    try:
        yield
    except ValueError as error:
        way_out = "" if "--as=merged" in str(error) else "; --as=merged writes the model instead"
        raise ValueError(f"{flag}: {error}{way_out}") from None


def require_plain(run: FinishedRun, svd_rank: int | None) -> None:
    """Raise a ValueError of one line unless a run's adapter can be plain LoRA, perhaps by SVD.

    Args:
      svd_rank: `--svd_rank`; without it, methods that are no plain LoRA are refused.
    """
    if not isinstance(run.config, TextConfig):
        raise ValueError(
            f"the run's model is a classifier ({run.shape.model_type}), and this is for language "
            "models; --as=merged, or --as=peft --for=peft"
        )
    if run.trainable["params"]:
        raise ValueError(
            f"'{min(run.trainable['params'])}' trains in full, and a plain LoRA has no such "
            "parameters; --as=merged"
        )
    if table := next((each for each in run.frozen.spec.adapted if lookup(each)), None):
        raise ValueError(
            f"'{table.use.path}' is an embedding, and adapters of matrices alone are taken; "
            "--as=merged"
        )
    require_published_base(run)
    if svd_rank is not None:
        return
    for each in matrices(run.trainable, run.frozen, names_of(run.shape)):
        if each.variant.as_lora(each.base, each.factors) is None:
            title = each.variant.title or type(each.variant).__name__
            raise ValueError(
                f"'{each.path}': {title} is no plain LoRA; --as=merged, or --svd_rank=R, which "
                "cuts it to rank R and says the error"
            )


def svd_lines(errors: Mapping[str, float]) -> list[str]:
    """A table of the relative error that the SVD makes in each weight's update."""
    rows = [(name, f"{error:.2%}") for name, error in errors.items()]
    return text_table(("weight", "relative error of its update"), rows).splitlines() if rows else []
