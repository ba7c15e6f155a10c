"""Inputs that count several times, or not at all, against weighted statistics by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
import variants

KEY = jax.random.key(0)
SHAPES = {
    "stack": (2, 4, 4),
    "flat": (4, 4),
    "heads": (2, 3),
    "pooled": (4, 4),
    "both": (4, 4),
    "table": (5, 4),  # as many as a batch has rows
}
EVA = variants.make("eva", rank=2, initialization="eva")


def net(params, x):
    """A scan over layers, then tokens flattened, in heads, pooled, and beside fixed positions."""
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    positions = jnp.tanh(params["table"]) @ params["both"]
    return (
        x.reshape(-1, 4) @ params["flat"],
        x.reshape(*x.shape[:2], 2, 2) @ params["heads"],
        x[:, 0] @ params["pooled"],
        x @ params["both"] + positions.sum(axis=0)[None, None],
    )


def inputs_of(params, x, counts):
    """The inputs of each matrix that count, as rows, and how often, by NumPy."""
    tokens = counts.ravel()
    found = {}
    for index, w in enumerate(params["stack"]):
        found["stack", index] = x.reshape(-1, 4), tokens
        x = np.tanh(x @ w)
    rows, table = x.reshape(-1, 4), np.tanh(params["table"])
    found["flat", ...] = rows, tokens
    found["heads", ...] = x.reshape(-1, 2), np.repeat(tokens, 2)
    found["pooled", ...] = x[:, 0], counts.max(axis=1)
    found["both", ...] = np.concatenate([rows, table]), np.concatenate([tokens, np.ones(5)])
    return {name: (x[often > 0], often[often > 0]) for name, (x, often) in found.items()}


@pytest.fixture(scope="module")
def problem():
    """Two batches; of the last row nothing counts, of the others all but two tokens."""
    jax.config.update("jax_enable_x64", True)
    random = np.random.RandomState(0)
    params = {name: random.randn(*shape) for name, shape in SHAPES.items()}
    batches = []
    for _ in range(2):
        counts = random.choice([0.5, 1.0, 2.0], (5, 6))
        counts[-1] = counts[0, 4:] = 0
        batches.append((np.where(counts[..., None] > 0, random.randn(5, 6, 4), np.nan), counts))
    yield params, batches
    jax.config.update("jax_enable_x64", False)


def test_inputs_count_as_often_as_their_tokens(problem):
    """What does not count is not a number here, so it cannot have any part."""
    params, batches = problem
    adapted = lj.adapt(
        lambda params, x, counts: net(params, x),
        EVA,
        ("stack", "flat", "heads", "pooled", "both"),
        quantize={"flat": lj.NF4()},
    )
    seen = adapted.gather(KEY, params, *batches[0], batches=batches, counts=lambda batch: batch[1])
    runs = [inputs_of(params, *batch) for batch in batches]
    for name, index in runs[0]:
        x, often = (
            np.concatenate(parts) for parts in zip(*(run[name, index] for run in runs), strict=True)
        )
        covariance = np.cov(x.T, aweights=often, bias=True)
        values, vectors = (part[..., ::-1][..., :2] for part in np.linalg.eigh(covariance))
        one = jax.tree.map(lambda leaf, i=index: leaf[i], seen[name])
        np.testing.assert_allclose(one.variances, values, rtol=1e-8)
        np.testing.assert_allclose(np.abs(one.directions @ vectors), np.eye(2), atol=1e-7)
        np.testing.assert_allclose(one.variance, np.trace(covariance), rtol=1e-10)
        np.testing.assert_allclose(one.mean, np.average(x, axis=0, weights=often), rtol=1e-9)
        magnitude = np.average(np.abs(x), axis=0, weights=often)
        np.testing.assert_allclose(one.magnitude, magnitude, rtol=1e-10)


def test_counts_that_do_not_fit_are_refused(problem):
    """A loop over the rows of a batch does not say to which row its inputs belong."""
    params, batches = problem
    adapted = lj.adapt(lambda p, x, _: lax.map(lambda row: row @ p["pooled"], x), EVA, "pooled")
    given = {"batches": batches, "counts": lambda batch: batch[1]}
    said = r"'pooled': counts of shape \(5, 6\) do not say which .* of shape \(6, 4\), count"
    with pytest.raises(ValueError, match=said):
        adapted.init(KEY, params, *batches[0], **given)
