"""NumPy's evaluation of jaxprs against JAX's, in the dtypes that they have and in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lora_jax.compiled import jaxpr_costs
from lora_jax.compiled.by_numpy import ByNumpy, rounded_operands

pytestmark = pytest.mark.usefixtures("standard_promotion")


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (5 * g,))  # told apart from 3


def by_row(x):
    """Loops of different lengths that carry keys and stacks of rows, together and one alone."""

    def count(row, times):
        def body(state):
            n, key, rows = state
            drawn = (jax.random.bits(key) % 3).astype(rows.dtype)
            _, rows = lax.scan(lambda c, r: (c, r + drawn), 0, rows)
            return n + 1, jax.random.fold_in(key, n), rows

        start = (jnp.zeros((), int), jax.random.key(0), lax.stop_gradient(row))
        return lax.while_loop(lambda s: s[0] < times, body, start)[2].sum()

    return jax.vmap(count)(x, jnp.arange(len(x))).sum() + count(x[0], 2)


def looped(x):
    """Reversed and nested loops, what loops carry, branches, calls, remade values."""

    def body(carry, row):
        carry = jax.checkpoint(jnp.tanh)(carry + row)
        return carry, jnp.where(carry > 0, carry, lax.cond(row[0] > 0, jnp.sin, jnp.cos, row))

    last, rows = lax.scan(body, x[0], x, reverse=True)
    times = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + c[0]), (0, 1))[1]
    times += by_row(x)
    sums = lax.scan(lambda c, row: lax.scan(lambda c, n: (c + n, c * n), c, row), x[0, 0], x)[1]
    return tripled(times * rows).sum() + jnp.square(last).mean() + (sums * x).sum()


def indexed(x):
    """What embeddings, losses and attention do beside products."""
    ids = jnp.argsort(x[0])
    rows = jnp.take_along_axis(x, jnp.broadcast_to(ids, x.shape), axis=1).at[1].add(2 * x[2])
    moved = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
    first, second = jnp.split(jnp.concatenate([rows, moved]), [3])
    scores = jnp.einsum("ij,kj->ik", first, second)
    masked = jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -1e9)
    erfs = lax.erf(rows) + lax.erfc(rows) * lax.rsqrt(1 + rows**2) + lax.integer_pow(rows, -3)
    return (jax.nn.log_softmax(masked).sum() + erfs.sum()) + jnp.cumsum(x[::-1, 1]).max()


def stacked(x):
    """Products with axes in all places, a slice that is moved inside, a clamp."""
    y = lax.dot_general(
        x[:, :, None] * x[None, :1], x.T[:, None] + x[None, :1], (((1,), (2,)), ((2,), (0,)))
    )
    start = jnp.asarray(7)
    cut = lax.dynamic_slice(y, (start, start, start), (1, 2, 1))
    one = jnp.ones((), y.dtype)
    return lax.clamp(-one, y, one).sum() + lax.dynamic_update_slice(y, cut, (0, 0, 0)).sum()


@pytest.mark.parametrize("function", [looped, indexed, stacked])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_gradient_are_those_of_jax(function, dtype, x64):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(dtype)
    both = jax.value_and_grad(function)
    closed = jax.make_jaxpr(both)(x)
    value, gradient = ByNumpy(wide=dtype == np.float64)(closed.jaxpr, closed.consts, [x])
    expected = jax.jit(both)(x)
    limit = 1e-12 if dtype == np.float64 else 1e-4
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, expected[0], rtol=limit)
    np.testing.assert_allclose(gradient, expected[1], rtol=limit, atol=limit)


@pytest.mark.parametrize(
    "pick",
    [
        lambda x, ids: x[ids],
        lambda x, ids: jax.vmap(lambda x, i: lax.dynamic_slice(x, i, (2, 3)))(x[:2], ids),
        lambda x, ids: lax.top_k(x.at[0, 0, 3].set(4), 2),  # a tie
        lambda x, ids: x.at[ids].add(x[ids]),
        lambda x, ids: jax.vmap(lambda x, i: x.at[i[0], i[1:]].add(1))(x[:2], ids),
        lambda x, ids: lax.dynamic_update_slice(x, x[:1, :2], (1, ids[0, 1], 2)),
        lambda x, ids: jax.grad(lambda x: (x[:, ::2, 1:] ** 2).sum())(x),  # padded inside
        lambda x, ids: x.at[ids + 2].add(1, mode="drop"),
        lambda x, ids: x.at[ids + 2].get(mode="fill", fill_value=7),
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_what_is_picked_by_its_places(pick, wide):
    x, ids = np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.array([[0, 1], [2, 1]], np.int32)
    closed = jax.make_jaxpr(pick)(x, ids)
    found = ByNumpy(wide)(closed.jaxpr, closed.consts, [x, ids])
    for mine, theirs in zip(found, jax.tree.leaves(jax.jit(pick)(x, ids)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_float64_of_a_program_of_smaller_floats_is_what_it_would_be_without_rounding(x64):
    def function(x, w):
        return jnp.exp((x @ w.astype(jnp.bfloat16)).astype(jnp.float32)).sum(0) / 3

    random = np.random.default_rng(1)
    x, w = random.standard_normal((4, 5)), random.standard_normal((5, 3))
    low = x.astype(jnp.bfloat16), w.astype(np.float32)
    closed = jax.make_jaxpr(function)(*low)
    wide, own = (ByNumpy(each)(closed.jaxpr, closed.consts, low)[0] for each in (True, False))
    exact = np.exp(low[0].astype(float) @ low[1].astype(float)).sum(0) / 3
    np.testing.assert_allclose(wide, exact, rtol=1e-13)
    assert own.dtype == np.float32 and 1e-4 < np.abs(own / exact - 1).max() < 0.05


def test_both_draw_the_same_random_numbers():
    def function(key, x):
        keys = jax.random.split(key, 3)
        masks = lax.scan(lambda _, k: (None, jax.random.bernoulli(k, 0.3, (50,))), None, keys)[1]
        return jnp.where(masks, x, 0.0), jax.random.uniform(jax.random.fold_in(key, 7), (50,))

    given = jax.random.key(3), np.ones(50, np.float32)
    closed = jax.make_jaxpr(function)(*given)
    expected = jax.jit(function)(*given)
    assert 20 < expected[0].sum() < 70
    for wide in (False, True):
        found = ByNumpy(wide)(closed.jaxpr, closed.consts, given)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], np.asarray(expected[1]))


def test_what_devices_exchange_is_not_evaluated():
    """The body is of a part of the operands, and so is that of a reduction, which JAX does."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mean = jax.shard_map(
        lambda x: lax.pmean(x.mean(), "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    x = np.arange(1, 5, dtype=np.float32)
    closed = jax.make_jaxpr(mean)(x)
    with pytest.raises(NotImplementedError, match="shard_map"):
        ByNumpy(False)(closed.jaxpr, closed.consts, [x])
    closed = jax.make_jaxpr(lambda x: lax.reduce(x, np.float32(2), lambda a, b: a * b, (0,)))(x)
    for wide in (False, True):
        assert ByNumpy(wide)(closed.jaxpr, closed.consts, [x]) == [48]


@pytest.mark.filterwarnings("error")
def test_complex_numbers():
    x = np.random.default_rng(3).standard_normal(16).astype(np.float32)
    gradient = jax.grad(lambda x: (jnp.abs(jnp.fft.fft(x)) ** 2)[:5].sum())
    closed = jax.make_jaxpr(gradient)(x)
    assert "complex64" in str(closed)
    (found,) = ByNumpy(False)(closed.jaxpr, closed.consts, (x,))
    half = np.fft.ifft(np.fft.fft(x) * (np.arange(16) < 5)).real  # of 16 times the inverse's
    np.testing.assert_allclose(found, 2 * 16 * half, rtol=1e-4, atol=1e-4)


def products_of_spectra(x):
    """A circular convolution by either kind of transform, and one in two directions."""
    real = jnp.fft.irfft(jnp.fft.rfft(x) * jnp.conj(jnp.fft.rfft(x[::-1])), 5)
    whole = jnp.fft.ifft(jnp.fft.fft(x) / (2 + 1j * jnp.fft.fft(x).imag))
    both = jnp.fft.ifft2(jnp.fft.fft2(x) @ lax.complex(x, x).T[:, :4])
    return real, whole, both.real


def whole_numbers(x):
    """Divisions, towards zero, what remains of them, signs, and floats that become integers."""
    down = (40 * x).astype(np.int32) - 20
    return lax.div(down, 7 + 0 * down), lax.rem(down, -7 + 0 * down), lax.sign(down), x % 0.3, x > 1


@pytest.mark.parametrize("function", [products_of_spectra, whole_numbers])
def test_numbers_of_other_kinds(function):
    x = np.random.default_rng(4).standard_normal((4, 5)).astype(np.float32)
    closed, expected = jax.make_jaxpr(function)(x), jax.jit(function)(x)
    found = ByNumpy(False)(closed.jaxpr, closed.consts, [x])
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_other_devices_make_of_the_operands_of_products():
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    as_tpus_do = rounded_operands("tpu")(x)
    np.testing.assert_array_equal(as_tpus_do, x.astype(jnp.bfloat16).astype(np.float32))
    as_gpus_do = np.abs(rounded_operands("gpu")(x) / x - 1).max()
    assert 2**-12 < as_gpus_do <= 2**-11
    assert rounded_operands("cpu") is None


def test_the_memory_that_it_takes():
    """Of 1,000 numbers: a chain holds two of them beside the argument, a scan all of its rounds."""

    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    def rounds(x):
        return lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=50)[1].sum()

    x = np.zeros(1000, np.float32)
    of_chain, of_rounds = (
        jaxpr_costs.peak_bytes(jax.make_jaxpr(each)(x).jaxpr) for each in (chain, rounds)
    )
    assert 2 * 8000 <= of_chain <= 3 * 8000
    assert 50 * 8000 <= of_rounds <= 110 * 8000


def test_the_memory_that_it_takes_compiled():
    """Of 1,000 numbers, in their own dtype; what an inner jaxpr gives is there once."""

    def of(function, dtype, count=1):
        x = [jax.ShapeDtypeStruct((1000,), dtype)] * count
        return jaxpr_costs.working_bytes(jax.make_jaxpr(function)(*x).jaxpr)

    def inner(x):
        return jax.jit(lambda x: jnp.sin(jnp.sin(x)))(x)

    assert of(jnp.sin, jnp.float32) == 4000
    assert of(jnp.sin, jnp.bfloat16) == 2000
    assert of(jax.checkpoint(jnp.sin), jnp.float32) == 4000
    assert of(lambda x, y: jnp.outer(x, y), jnp.float32, 2) == 4 * 1000**2
    assert of(inner, jnp.float32) == 8000 - 4000  # the argument is not needed any more
    assert of(lambda x: lax.scan(lambda c, _: (c, c), x, None, length=50)[1], jnp.float32) in (
        50 * 4000,  # and what is carried, which is the argument
        51 * 4000,
    )
