"""Scores of predictions by name, on NumPy arrays in the order of the data; never NaN.

An undefined score (a correlation of constant outputs) is 0. With a non-finite output, its example
counts as wrong, a correlation is 0 and the loss is infinite.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy  # which loads `stats` where it is used: that takes half a second
import scipy.special

from lora_jax.data.task import Task, TextTask
from lora_jax.messages import require_known


class Sample:
    """Sums and correlations over the examples to score: every example once, correlated by SciPy.

    Values are arrays with a first axis of examples, (n, ...). A subclass may stand for several
    resamples: each result then has a first axis of resamples, (resamples, ...).

    Args:
      choices: this many successive examples are one question (`Task.choices`).
    """

    def __init__(self, choices: int = 1):
        self.choices = choices

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of values of examples, (n, ...), or of questions, (n / choices, ...)."""
        return values.sum(0)

    def counts(self, groups: np.ndarray, size: int) -> np.ndarray:
        """How many examples are in each of `size` groups, of which (n,) are the numbers."""
        return np.bincount(groups, minlength=size).astype(np.float64)

    def pearson(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Pearson's correlation of finite values (n,) with targets (n,); 0 if undefined."""
        return _correlation(scipy.stats.pearsonr, values, targets)

    def spearman(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The correlation of ranks, with mean ranks for ties; as `pearson`."""
        return _correlation(scipy.stats.spearmanr, values, targets)


def _correlation(measure: Callable, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if len(values) < 2 or values.min() == values.max() or targets.min() == targets.max():
        return np.zeros(())
    with warnings.catch_warnings(action="ignore"):  # about values that barely differ
        found = np.asarray(measure(values, targets).statistic)
    return np.where(np.isfinite(found), found, 0.0)


def ratio(above: np.ndarray, below: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The quotient; 0 where `below` is at most `least`."""
    found = np.zeros(np.broadcast(above, below).shape)
    return np.divide(above, below, out=found, where=below > least)


Metric = Callable[[np.ndarray, np.ndarray, Sample], np.ndarray]
"""A function of outputs, labels and the sample of the examples to score."""


def score(
    task: Task | Sequence[str],
    outputs: np.ndarray,
    labels: np.ndarray | None,
    choices: int = 1,
) -> dict[str, float]:
    """The metrics of a model's outputs on one labelled part.

    Args:
      task: a task, for its metrics and `eval_loss`, or the names of metrics.
      outputs: logits (n, C) of classes, or values (n, 1) of a regression. For `token_loss` and
        `perplexity`: the log-likelihood of each completion in nats, (n, 1).
      labels: class numbers or targets (n,). For those two metrics: the number of tokens of each
        completion.
      choices: only with names: this many consecutive examples are one question (`Task.choices`).

    Raises:
      ValueError: an unknown metric, one that does not fit the outputs, no labels, or a different
        number of labels and outputs.
    """
    if isinstance(task, Task):
        names, choices = (*task.metrics, "eval_loss"), task.choices
    else:
        names = tuple(task)
    if labels is None or len(labels) != len(outputs):
        count = 0 if labels is None else len(labels)
        raise ValueError(f"{len(outputs)} outputs cannot be scored against {count} labels")
    outputs = np.asarray(outputs, np.float64)
    sample = Sample(choices)
    return {name: float(measure(name, outputs, labels, sample)) for name in names}


def measure(name: str, outputs: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    """One metric of outputs on a sample of the examples: (), or (resamples,) for many at once.

    Args:
      name, outputs, labels: as for `score`; the outputs are float64.

    Raises:
      ValueError: an unknown metric, one that does not fit the outputs, or a label that is not a
        class.
    """
    known, own, classes = CLASSIFICATION, outputs, outputs.shape[1]
    if classes == 1:
        known, own = REGRESSION, outputs[:, 0]
    elif np.isin(labels, np.arange(classes)).all():
        labels = labels.astype(np.int64)
    else:
        raise ValueError(f"labels must be classes, from 0 to {classes - 1}")
    require_known(name, known, f"unknown metric '{name}' of these outputs")
    return known[name](own, labels, sample)


def score_parts(
    task: Task | TextTask,
    outputs: Mapping[str, np.ndarray],
    tokens: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """The metrics of the given parts of a task.

    Metrics of `validation` have their plain names, those of extra parts are `<name>_<part>`. A part
    in `Task.extra_metrics` has the metrics that are named there, and the loss. MNLI's two
    development parts also give their mean, `accuracy_m_mm`. `outputs` holds the parts to score.

    In a text-to-text task, a part with options takes the result of `option_outputs` and gives
    accuracy and `eval_loss`, the cross-entropy over the options. Any other part takes the
    log-likelihood of each completion, (n, 1), and gives `token_loss` and `perplexity`; for it,
    `tokens` must hold the number of tokens of each completion, (n,): the labels of
    `encode_prompts`. If there are several extra parts, and all of them are scored and have options,
    `accuracy_mean` is the mean of their accuracies.

    Raises:
      ValueError: a part that the task does not have, no `tokens` for a part, or as in `score`.
    """
    parts = {"validation": task.validation, **task.extra}
    found: dict[str, float] = {}
    for part, values in outputs.items():
        require_known(part, parts, f"task '{task.name}' has no part '{part}'")
        end = "" if part == "validation" else f"_{part}"
        if isinstance(task, TextTask):
            scores = _score_prompts(task, part, values, tokens or {})
        else:
            own = task.extra_metrics.get(part)
            labels = (task.validation if part == "validation" else task.extra[part]).labels
            scores = score((*own, "eval_loss") if own else task, values, labels, task.choices)
        found |= {f"{name}{end}": value for name, value in scores.items()}
    if {"accuracy", "accuracy_mismatched"} <= found.keys():
        found["accuracy_m_mm"] = (found["accuracy"] + found["accuracy_mismatched"]) / 2
    names = [f"accuracy_{part}" for part in task.extra]
    if isinstance(task, TextTask) and len(names) > 1 and found.keys() >= set(names):
        found["accuracy_mean"] = float(np.mean([found[name] for name in names]))
    return found


def _score_prompts(
    task: TextTask, part: str, outputs: np.ndarray, tokens: Mapping[str, np.ndarray]
) -> dict[str, float]:
    prompts = task.validation if part == "validation" else task.extra[part]
    if prompts.options is not None:
        return score(("accuracy", "eval_loss"), outputs, prompts.answers)
    if part not in tokens:
        raise ValueError(f"task '{task.name}': the numbers of tokens of part '{part}' are missing")
    return score(("token_loss", "perplexity"), outputs, tokens[part])


def predictions(outputs: np.ndarray, choices: int = 1) -> np.ndarray:
    """The predicted class of each example, (n,), or with `choices` the choice of each question.

    A choice's score is its logit of "right" minus its logit of "wrong".
    """
    if choices == 1:
        return outputs.argmax(1)
    with np.errstate(invalid="ignore"):  # infinities, which `correct` handles
        scores = outputs[:, 1] - outputs[:, 0]
    return scores.reshape(-1, choices).argmax(1)


def correct(logits: np.ndarray, labels: np.ndarray, choices: int = 1) -> np.ndarray:
    """Whether the answer to each example, or with `choices` to each question, is right."""
    usable = _usable(logits).reshape(-1, choices).all(1)
    expected = labels if choices == 1 else labels.reshape(-1, choices).argmax(1)
    return (predictions(logits, choices) == expected) & usable


def _usable(logits: np.ndarray) -> np.ndarray:
    """Whether all logits of each example are finite, (n,)."""
    return np.isfinite(logits).min(1)


def _accuracy(logits: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    right = correct(logits, labels, sample.choices)
    return sample.total(right) / len(right)


def _confusion(logits: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    """How many examples have each label and prediction, (..., C, C).

    The prediction of logits that are not finite is a wrong class.
    """
    classes = logits.shape[1]
    usable = _usable(logits)
    predicted = np.where(usable, predictions(logits), (labels + 1) % classes)
    cells = np.ravel_multi_index((labels, predicted), (classes, classes))
    counts = sample.counts(cells, classes**2)
    return counts.reshape(*counts.shape[:-1], classes, classes)


def _f1(logits: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    """F1 of class 1 if there are two classes, else the mean over classes (macro).

    The mean leaves out classes that are neither labels nor predictions.
    """
    table = _confusion(logits, labels, sample)
    both = table.sum(-2) + table.sum(-1)  # of each class, as prediction and as label
    each = ratio(2 * np.diagonal(table, axis1=-2, axis2=-1), both)
    return each[..., 1] if logits.shape[1] == 2 else each.sum(-1) / (both > 0).sum(-1)


def _matthews(logits: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    """Matthews' correlation for any number of classes (Gorodkin, 2004)."""
    table = _confusion(logits, labels, sample)
    true, predicted, n = table.sum(-1), table.sum(-2), table.sum((-2, -1))
    shared = n * np.trace(table, axis1=-2, axis2=-1) - (true * predicted).sum(-1)
    spread = (n**2 - (true**2).sum(-1)) * (n**2 - (predicted**2).sum(-1))
    return ratio(shared, np.sqrt(spread))


def _cross_entropy(logits: np.ndarray, labels: np.ndarray, sample: Sample) -> np.ndarray:
    usable = _usable(logits)
    logs = scipy.special.log_softmax(np.where(usable[:, None], logits, 0.0), axis=1)
    loss = -sample.total(logs[np.arange(len(labels)), labels]) / len(labels)
    return _if_all(usable, loss, np.inf, sample)


def _squared_error(values: np.ndarray, targets: np.ndarray, sample: Sample) -> np.ndarray:
    usable = np.isfinite(values)
    with np.errstate(over="ignore"):
        errors = np.square(np.where(usable, values, 0.0) - targets)
        return _if_all(usable, sample.total(errors) / len(targets), np.inf, sample)


def _if_all(usable: np.ndarray, found: np.ndarray, other: float, sample: Sample) -> np.ndarray:
    """A score if all examples of the sample are usable, else the other number."""
    if usable.all():  # which saves a product with all resamples
        return found
    return np.where(sample.total(~usable) > 0, other, found)


def _pearson(values: np.ndarray, targets: np.ndarray, sample: Sample) -> np.ndarray:
    usable = np.isfinite(values)
    found = sample.pearson(np.where(usable, values, 0.0), targets)
    return _if_all(usable, found, 0.0, sample)


def _spearman(values: np.ndarray, targets: np.ndarray, sample: Sample) -> np.ndarray:
    usable = np.isfinite(values)
    found = sample.spearman(np.where(usable, values, 0.0), targets)
    return _if_all(usable, found, 0.0, sample)


def _token_loss(logs: np.ndarray, tokens: np.ndarray, sample: Sample) -> np.ndarray:
    """Minus the mean log-likelihood of a token, in nats."""
    usable = np.isfinite(logs)
    loss = -sample.total(np.where(usable, logs, 0.0)) / sample.total(tokens)
    return _if_all(usable, loss, np.inf, sample)


def _perplexity(logs: np.ndarray, tokens: np.ndarray, sample: Sample) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(_token_loss(logs, tokens, sample))


def _mean(first: Metric, second: Metric) -> Metric:
    return lambda outputs, labels, sample: (
        (first(outputs, labels, sample) + second(outputs, labels, sample)) / 2
    )


LOWER_IS_BETTER = ("eval_loss", "token_loss", "perplexity")
"""Metrics for which smaller is better."""

CLASSIFICATION: Mapping[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "accuracy_f1": _mean(_accuracy, _f1),
    "eval_loss": _cross_entropy,
}
REGRESSION: Mapping[str, Metric] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _mean(_pearson, _spearman),
    "eval_loss": _squared_error,
    "token_loss": _token_loss,
    "perplexity": _perplexity,
}
