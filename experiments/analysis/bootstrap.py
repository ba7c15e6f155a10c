"""Compute metrics of `label_metrics` on many bootstrap resamples of the examples at once."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.special
import scipy.stats

from lora_jax.metrics import label_metrics
from lora_jax.suggest import nearest

RESAMPLES = 10_000
CHUNK = 4_000_000
"""The most numbers in an array of `weights`, if it has more than one row."""

_NONE = 1e-12
"""A bound on the spread that rounding gives to equal values."""

Measure = Callable[[np.ndarray], np.ndarray]
"""A function from the times that each example was drawn, (resamples, n), to the metric.

The result has shape (resamples,).
"""


def replicates(
    metric: str,
    outputs: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    choices: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """A metric of several runs on the same resamples of the examples, (runs, resamples).

    Examples are drawn with replacement. As all runs have the same resamples, differences between
    runs are those of a paired bootstrap.

    Args:
      metric: a name in CLASSIFICATION or REGRESSION.
      outputs, labels, choices: `outputs` has an array for each run; otherwise as for
        `lora_jax.metrics.label_metrics.score`. Each `choices` successive rows are a question; whole
        questions are drawn.

    Raises:
      ValueError: an unknown metric, or one that does not fit the outputs.
    """
    measures = []
    for each in outputs:
        known = REGRESSION if each.shape[1] == 1 else CLASSIFICATION
        if metric not in known:
            near = nearest(metric, known)
            raise ValueError(f"no bootstrap of metric '{metric}' here; nearest: {near}")
        measures.append(known[metric](np.asarray(each, np.float64), labels, choices))
    drawn = weights(len(labels) // choices, resamples, seed)
    parts = [[measure(each) for measure in measures] for each in drawn]
    return np.concatenate(parts, axis=1)


def weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n examples is in each resample: arrays (some, n), `resamples` in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def correct(outputs: np.ndarray, labels: np.ndarray, choices: int = 1) -> np.ndarray:
    """Whether the answer to each example, or question, is right; accuracy is the mean of this."""
    usable = _usable(outputs).reshape(-1, choices).all(1)
    expected = labels if choices == 1 else labels.reshape(-1, choices).argmax(1)
    return (label_metrics.predictions(outputs, choices) == expected) & usable


def _usable(outputs: np.ndarray) -> np.ndarray:
    """Whether all outputs of each example are finite, (n,)."""
    return np.isfinite(outputs).min(1)


def _accuracy(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    right = correct(outputs, labels, choices).astype(np.float64)
    return lambda drawn: drawn @ right / len(right)


def _confusion(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    """Counts of labels by predictions, (resamples, C, C)."""
    classes = outputs.shape[1]
    usable = _usable(outputs)
    predicted = np.where(usable, label_metrics.predictions(outputs), (labels + 1) % classes)
    cells = np.eye(classes**2)[labels * classes + predicted]
    cells = cells.reshape(-1, choices, classes**2).sum(1)  # sum over each question
    return lambda drawn: (drawn @ cells).reshape(-1, classes, classes)


def _f1(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    count = _confusion(outputs, labels, choices)

    def measure(drawn: np.ndarray) -> np.ndarray:
        table = count(drawn)
        both = table.sum(1) + table.sum(2)  # of each class, as label and as prediction
        each = _ratio(2 * np.diagonal(table, axis1=1, axis2=2), both)
        return each[:, 1] if outputs.shape[1] == 2 else each.sum(1) / (both > 0).sum(1)

    return measure


def _matthews(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    count = _confusion(outputs, labels, choices)

    def measure(drawn: np.ndarray) -> np.ndarray:
        table = count(drawn)
        true, predicted, n = table.sum(2), table.sum(1), table.sum((1, 2))
        shared = n * np.trace(table, axis1=1, axis2=2) - (true * predicted).sum(1)
        spread = (n**2 - (true**2).sum(1)) * (n**2 - (predicted**2).sum(1))
        return _ratio(shared, np.sqrt(spread))

    return measure


def _cross_entropy(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    usable = _usable(outputs)
    logs = scipy.special.log_softmax(np.where(usable[:, None], outputs, 0.0), axis=1)
    return _loss(-logs[np.arange(len(labels)), labels], usable, choices)


def _squared_error(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    usable = _usable(outputs)
    return _loss(np.square(np.where(usable, outputs[:, 0], 0.0) - labels), usable, choices)


def _loss(losses: np.ndarray, usable: np.ndarray, choices: int) -> Measure:
    questions = losses.reshape(-1, choices).mean(1)
    bad = (~usable).reshape(-1, choices).any(1).astype(np.float64)
    return lambda drawn: np.where(drawn @ bad > 0, np.inf, drawn @ questions / len(questions))


def _pearson(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    usable = _usable(outputs)
    x, y = _standard(np.where(usable, outputs[:, 0], 0.0)), _standard(labels)
    columns = np.stack([x, y, x * x, y * y, x * y, ~usable], axis=1)

    def measure(drawn: np.ndarray) -> np.ndarray:
        x, y, xx, yy, xy, bad = (drawn @ columns).T / len(labels)
        found = _ratio(xy - x * y, np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0.0)), _NONE)
        return np.where(bad > 0, 0.0, found)

    return measure


def _spearman(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
    usable = _usable(outputs)
    sides = [_midranks(each) for each in (np.where(usable, outputs[:, 0], 0.0), labels)]

    def measure(drawn: np.ndarray) -> np.ndarray:
        n = len(labels)
        x, y = (side(drawn) / n - (1 + 1 / n) / 2 for side in sides)  # minus the known mean rank
        squares = (drawn * x**2).sum(1) * (drawn * y**2).sum(1)
        found = _ratio((drawn * x * y).sum(1), np.sqrt(squares), _NONE)
        return np.where(drawn @ ~usable > 0, 0.0, found)

    return measure


def _midranks(values: np.ndarray) -> Measure:
    """A function that gives the rank of each example in each resample, with mean ranks for ties."""
    _, group = np.unique(values, return_inverse=True)
    members = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[members], prepend=-1))

    def measure(drawn: np.ndarray) -> np.ndarray:
        counts = np.add.reduceat(drawn[:, members], starts, axis=1)
        ranks = counts.cumsum(1) - (counts - 1) / 2
        return ranks[:, group]

    return measure


def _standard(values: np.ndarray) -> np.ndarray:
    """Shift values to mean 0 and scale them to at most 1, so that sums of squares are accurate."""
    values = values - values.mean()
    return values / (np.abs(values).max() or 1.0)


def _ratio(above: np.ndarray, below: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The quotient; 0 where `below` is at most `least`, as in the metrics."""
    found = np.zeros(np.broadcast(above, below).shape)
    return np.divide(above, below, out=found, where=below > least)


def _mean(first: Callable[..., Measure], second: Callable[..., Measure]) -> Callable[..., Measure]:
    def made(outputs: np.ndarray, labels: np.ndarray, choices: int) -> Measure:
        both = [each(outputs, labels, choices) for each in (first, second)]
        return lambda drawn: (both[0](drawn) + both[1](drawn)) / 2

    return made


CLASSIFICATION = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "accuracy_f1": _mean(_accuracy, _f1),
    "eval_loss": _cross_entropy,
}
REGRESSION = {
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _mean(_pearson, _spearman),
    "eval_loss": _squared_error,
}
