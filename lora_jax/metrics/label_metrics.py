"""Scores of predictions by name, on NumPy arrays in the order of the data; never NaN.

An undefined score (a correlation of constant outputs) is 0. With a non-finite output, its example
counts as wrong, a correlation is 0 and the loss is infinite.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.special
import scipy.stats
import sklearn.metrics

from lora_jax.data.tasks.task import Task
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.suggest import nearest


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
    known = REGRESSION if outputs.shape[1] == 1 else CLASSIFICATION
    for name in names:
        if name not in known:
            raise ValueError(f"unknown metric '{name}' here; nearest: {nearest(name, known)}")
    if known is CLASSIFICATION:
        return {name: CLASSIFICATION[name](outputs, labels, choices) for name in names}
    return {name: REGRESSION[name](outputs[:, 0], labels) for name in names}


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
        if part not in parts:
            raise ValueError(
                f"task '{task.name}' has no part '{part}'; nearest: {nearest(part, parts)}"
            )
        end = "" if part == "validation" else f"_{part}"
        if isinstance(task, TextTask):
            scores = _score_texts(task, part, values, tokens or {})
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


def _score_texts(
    task: TextTask, part: str, outputs: np.ndarray, tokens: Mapping[str, np.ndarray]
) -> dict[str, float]:
    prompts = task.validation if part == "validation" else task.extra[part]
    if prompts.options is not None:
        return score(("accuracy", "eval_loss"), outputs, prompts.answers)
    if part not in tokens:
        raise ValueError(f"task '{task.name}': the numbers of tokens of part '{part}' are missing")
    return score(("token_loss", "perplexity"), outputs, tokens[part])


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy of logits (n, C) against labels (n,)."""
    return score(("accuracy", "eval_loss"), logits, labels)


def regression(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Pearson's correlation and mean squared error of outputs (n, 1) against targets (n,)."""
    return score(("pearson", "eval_loss"), outputs, targets)


def predictions(outputs: np.ndarray, choices: int = 1) -> np.ndarray:
    """The predicted class of each example, (n,), or with `choices` the choice of each question.

    A choice's score is its logit of "right" minus its logit of "wrong".
    """
    if choices == 1:
        return outputs.argmax(1)
    with np.errstate(invalid="ignore"):  # infinities, which `_accuracy` handles
        scores = outputs[:, 1] - outputs[:, 0]
    return scores.reshape(-1, choices).argmax(1)


def _accuracy(logits: np.ndarray, labels: np.ndarray, choices: int) -> float:
    expected = labels if choices == 1 else labels.reshape(-1, choices).argmax(1)
    usable = np.isfinite(logits).all(1).reshape(-1, choices).all(1)
    return float(((predictions(logits, choices) == expected) & usable).mean())


def _predicted(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The predicted class of each example; a wrong class if its logits are not finite."""
    usable = np.isfinite(logits).all(1)
    return np.where(usable, predictions(logits), (labels + 1) % logits.shape[1])


def _f1(logits: np.ndarray, labels: np.ndarray, choices: int) -> float:
    """F1 of class 1 if there are two classes, else the mean over classes (macro)."""
    average = "binary" if logits.shape[1] == 2 else "macro"
    predicted = _predicted(logits, labels)
    return float(
        sklearn.metrics.f1_score(
            labels,
            predicted,
            average=average,
            zero_division=0.0,  # type: ignore[arg-type]
        )
    )


def _matthews(logits: np.ndarray, labels: np.ndarray, choices: int) -> float:
    predicted = _predicted(logits, labels)
    if predicted.min() == predicted.max() or labels.min() == labels.max():
        return 0.0  # as scikit-learn gives, but without its warning
    return float(sklearn.metrics.matthews_corrcoef(labels, predicted))


def _accuracy_f1(logits: np.ndarray, labels: np.ndarray, choices: int) -> float:
    return (_accuracy(logits, labels, choices) + _f1(logits, labels, choices)) / 2


def _cross_entropy(logits: np.ndarray, labels: np.ndarray, choices: int) -> float:
    if not np.isfinite(logits).all():
        return float("inf")
    logs = scipy.special.log_softmax(logits, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def _correlation(measure: Callable, values: np.ndarray, targets: np.ndarray) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return 0.0
    if values.min() == values.max() or targets.min() == targets.max():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that barely differ
        found = float(measure(values, targets).statistic)
    return found if np.isfinite(found) else 0.0


def _pearson(values: np.ndarray, targets: np.ndarray) -> float:
    return _correlation(scipy.stats.pearsonr, values, targets)


def _spearman(values: np.ndarray, targets: np.ndarray) -> float:
    return _correlation(scipy.stats.spearmanr, values, targets)


def _pearson_spearman(values: np.ndarray, targets: np.ndarray) -> float:
    return (_pearson(values, targets) + _spearman(values, targets)) / 2


def _squared_error(values: np.ndarray, targets: np.ndarray) -> float:
    if not np.isfinite(values).all():
        return float("inf")
    with np.errstate(over="ignore"):
        return float(np.square(values - targets).mean())


def _token_loss(logs: np.ndarray, tokens: np.ndarray) -> float:
    """Minus the mean log-likelihood of a token, in nats."""
    if not np.isfinite(logs).all():
        return float("inf")
    return float(-logs.sum() / tokens.sum())


def _perplexity(logs: np.ndarray, tokens: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(_token_loss(logs, tokens)))


LOWER_IS_BETTER = ("eval_loss", "token_loss", "perplexity")
"""Metrics for which smaller is better."""

CLASSIFICATION: Mapping[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "accuracy_f1": _accuracy_f1,
    "eval_loss": _cross_entropy,
}
REGRESSION: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
    "eval_loss": _squared_error,
    "token_loss": _token_loss,
    "perplexity": _perplexity,
}
