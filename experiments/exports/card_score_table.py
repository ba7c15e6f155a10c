"""The section of a model card on scores: a table, and what its numbers do not cover."""

import itertools
from collections.abc import Iterable, Sequence

from experiments.analysis.bootstrap import RESAMPLES
from experiments.exports.card_origin import is_made
from experiments.exports.card_scores import Score
from experiments.exports.markdown import code, table
from experiments.runs import predictions
from experiments.runs.finished_run import FinishedRun

_OF_TEXTS = " Scores of generated texts with a signature below are from 0 to 100."
FEW = 100
"""Below this many examples, the percentile bootstrap is rough."""


def score_section(run: FinishedRun, found: Sequence[Score]) -> Iterable[str]:
    """Paragraphs on the scores of a run; none if its record has no scores."""
    if not found:
        return
    record = run.record
    best = run.config.train.select == "best" and not is_made(run)
    yield "## Scores"
    yield (
        f"{_whose(run, best)} They were computed by lora-jax in the run, and not anew with these "
        "files. Accuracy, F1 and correlations are fractions of 1."
        f"{_OF_TEXTS if record.signatures else ''}"
    )
    heads = ("score", "part", "value", "95% interval", "examples")
    lines = [_row(run, each) for each in found]
    saved = (run.folder / predictions.NAME).exists()
    known = [saved or any(cells) for cells in zip(*lines, strict=True)]
    heads, *lines = [tuple(itertools.compress(line, known)) for line in (heads, *lines)]
    yield table(heads, lines)
    if any(each.low is not None for each in found):
        yield _interval(found)
    elif not saved:
        yield (
            "The scores have no intervals, as the run has saved no predictions to draw examples "
            "from again."
        )
    if best:
        yield (
            "The step was chosen by the validation part itself, so that its scores there are "
            "somewhat too good."
        )
    if record.signatures:
        yield "How scores of generated texts were computed:"
        rows = [(code(name), code(said)) for name, said in record.signatures.items()]
        yield table(("score", "signature"), rows)


def _whose(run: FinishedRun, best: bool) -> str:
    """What the scores are of."""
    record = run.record
    if is_made(run):
        return "Scores of the adapter as it is here; the run has not trained it."
    if best:
        return (
            f"Scores of the run, whose adapter is that of step {record.best_step}, chosen by the "
            f"rule {code(record.rule)}."
        )
    return f"Scores of the run, whose adapter is that of step {record.steps}, the last one."


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
