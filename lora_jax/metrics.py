"""Scores of predictions, on NumPy arrays in the order of the data."""

import numpy as np


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy of logits (n, C) against labels (n,)."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    losses = log_sum - shifted[np.arange(len(labels)), labels]
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "eval_loss": float(losses.mean()),
    }


def regression(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Pearson's correlation and mean squared error of outputs (n, 1) against targets (n,)."""
    values = outputs[:, 0].astype(np.float64)
    correlation = np.corrcoef(values, targets)[0, 1] if values.std() and targets.std() else 0.0
    return {
        "pearson": float(correlation),
        "eval_loss": float(np.square(values - targets).mean()),
    }
