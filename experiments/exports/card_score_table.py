"""The section of a model card on scores: a table, and what its numbers do not cover."""

from collections.abc import Iterable, Sequence

from experiments.analysis.bootstrap import RESAMPLES
from experiments.exports.card_scores import Score
from experiments.exports.markdown import code, table
from experiments.runs.finished_run import FinishedRun

_OF_TEXTS = " Scores of generated texts with a signature below are from 0 to 100."
FEW = 100
"""Below this many examples, the percentile bootstrap is rough."""


def score_section(run: FinishedRun, found: Sequence[Score]) -> Iterable[str]:
    """Paragraphs on the scores of a run; none if its record has no scores."""
    if not found:
        return
    record, best = run.record, run.config.train.select == "best"
    yield "## Scores"
    step = record.best_step if best else record.steps
    chosen = f", chosen by the rule {code(record.rule)}" if best else ", the last one"
    yield (
        f"Scores of the run, whose adapter is that of step {step}{chosen}. They were computed by "
        "lora-jax in the run, and not anew with these files. Accuracy, F1 and correlations are "
        f"fractions of 1.{_OF_TEXTS if record.signatures else ''}"
    )
    yield table(
        ("score", "part", "value", "95% interval", "examples"),
        [_row(run, each) for each in found],
    )
    if any(each.low is not None for each in found):
        yield _interval(found)
    if best:
        yield (
            "The step was chosen by the validation part itself, so that its scores there are "
            "somewhat too good."
        )
    if record.signatures:
        yield "How scores of generated texts were computed:"
        rows = [(code(name), code(said)) for name, said in record.signatures.items()]
        yield table(("score", "signature"), rows)


def _row(run: FinishedRun, score: Score) -> tuple[str, ...]:
    interval = "" if score.low is None else f"{score.low:.4g} to {score.high:.4g}"
    value, part = f"{score.value:.4g}", score.part or "several"
    name = f"**{code(score.name)}**" if score.name == run.record.metric else code(score.name)
    return name, code(part), value, interval, f"{score.examples:,}" if score.examples else ""


def _interval(found: Sequence[Score]) -> str:
    few = min(each.examples or 0 for each in found if each.low is not None)
    rough = f" With fewer than {FEW} examples it is rough." if few < FEW else ""
    return (
        "The interval is that of the percentile bootstrap over the examples of the part "
        f"({RESAMPLES:,} resamples of the predictions that the run has saved). It covers which "
        "examples the model is scored on. It does not cover seeds, nor the choice of training "
        f"data.{rough}"
    )
