"""Truncated decompositions against NumPy's full one in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.methods.decompositions import minor_svd, randomized_svd, truncated_svd

RANK = 6
DTYPES = (jnp.float32, jnp.float64)
SPECTRA = {
    "flat": np.linspace(1.0, 0.9, 40),
    "slow": np.arange(1.0, 41) ** -0.5,
    "fast": np.arange(1.0, 41) ** -2.0,
    "equal": np.where(np.arange(40) < 12, 1.0, 0.1),
    "few": np.where(np.arange(40) < 3, 1.0, 0.0),
    "steep": 10.0 ** -np.arange(40.0),
}
"""Singular values; the last ones are below the root of a rounding error of either dtype."""

decomposed, least = (
    functools.partial(jax.jit, static_argnums=1)(each) for each in (truncated_svd, minor_svd)
)


def of_spectrum(values, shape, seed=0):
    random = np.random.RandomState(seed)
    u, v = (np.linalg.qr(random.randn(n, min(shape)))[0] for n in shape)
    return u * values[: min(shape)] @ v.T


def checked(triplets, shape, dtype):
    """The triplets in float64: of their dtype, orthonormal, the largest entries positive."""
    u, s, vt = map(np.asarray, triplets)
    assert (u.dtype, u.shape, vt.shape) == (dtype, (shape[0], RANK), (RANK, shape[1]))
    longer = u.T if shape[0] >= shape[1] else vt
    assert (longer.max(axis=1) >= -longer.min(axis=1)).all()
    u, s, vt = (x.astype(np.float64) for x in (u, s, vt))
    bound = 30 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(u.T @ u, np.eye(RANK), atol=bound)
    np.testing.assert_allclose(vt @ vt.T, np.eye(RANK), atol=bound)
    return u, s, vt


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (40, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_leading_part_is_as_exact_as_a_full_decompositions(shape, dtype, x64):
    eps = float(jnp.finfo(dtype).eps)
    for name, values in SPECTRA.items():
        w = of_spectrum(values, shape)
        exact = np.linalg.svd(w, compute_uv=False)
        u, s, vt = checked(decomposed(jnp.asarray(w, dtype), RANK), shape, dtype)
        error = np.abs(s - exact[:RANK])
        sharp = exact[:RANK] > eps**0.5
        assert error[sharp].max() < 10 * eps, name
        assert error.max() < eps**0.5, name
        bound = 10 * eps if sharp.all() else eps**0.5
        assert np.linalg.norm(w - u * s @ vt, 2) - exact[RANK] < bound, name


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_smallest_part_is_as_exact_as_a_full_decompositions(shape, dtype, x64):
    eps = float(jnp.finfo(dtype).eps)
    for name, values in SPECTRA.items():
        w = of_spectrum(values, shape)
        left, exact, right = np.linalg.svd(w, full_matrices=False)
        u, s, vt = checked(least(jnp.asarray(w, dtype), RANK), shape, dtype)
        np.testing.assert_allclose(s, exact[-RANK:], atol=10 * eps, err_msg=name)
        part = left[:, -RANK:] * exact[-RANK:] @ right[-RANK:]
        gap = exact[-RANK - 1] - exact[-RANK]
        if gap > 1e-3 or exact[-RANK - 1] < eps:  # otherwise other directions are as small
            np.testing.assert_allclose(u * s @ vt, part, atol=30 * eps, err_msg=name)


def test_the_smallest_directions_are_not_those_of_a_gram_matrix():
    """In float32, its rounding errors turn those of values near 1e-3 by several hundredths."""
    w = of_spectrum(SPECTRA["fast"], (90, 40))
    _, _, vt = least(jnp.asarray(w, jnp.float32), RANK)
    others = np.linalg.svd(w)[2][:-RANK]
    assert np.linalg.norm(others @ np.asarray(vt).T, 2) < 1e-3


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e25])
def test_sizes_whose_squares_no_float_holds(size):
    w = size * of_spectrum(SPECTRA["slow"], (40, 90))
    u, s, vt = (np.asarray(x, np.float64) for x in decomposed(jnp.asarray(w, jnp.float32), RANK))
    np.testing.assert_allclose(s, size * SPECTRA["slow"][:RANK], rtol=1e-5)
    np.testing.assert_allclose(u.T @ u, np.eye(RANK), atol=1e-5)
    assert np.isfinite(vt).all()


def test_all_singular_values_may_be_asked_for(x64):
    w = np.random.RandomState(0).randn(5, 4)
    u, s, vt = map(np.asarray, decomposed(jnp.asarray(w), 4))
    np.testing.assert_allclose(u * s @ vt, w, atol=1e-13)


def test_a_randomised_one_converges_by_the_power_of_its_iterations(x64):
    """Values halve, and 14 directions are followed: the next is 2^-9 of the last wanted one."""
    w = of_spectrum(0.5 ** np.arange(40.0), (60, 40))
    for iterations in (0, 1):
        _, s, _ = randomized_svd(jax.random.key(0), jnp.asarray(w), RANK, iterations)
        error = np.abs(np.asarray(s) / 0.5 ** np.arange(RANK) - 1).max()
        assert error < 100 * 0.5 ** (2 * 9 * (2 * iterations + 1)) + 1e-14
