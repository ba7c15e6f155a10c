"""The way to multiply is measured: once for each shape, and outside of the program."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.serving import grouped_matmul
from lora_jax.serving.grouped_matmul import WAYS, Product, chosen, fastest, seconds


def test_only_a_way_that_is_clearly_faster_is_taken():
    assert chosen({"gather": 1.0, "concat": 0.9, "ragged": 2.0}) == "gather"
    assert chosen({"gather": 1.0, "concat": 0.7, "ragged": 0.5}) == "ragged"
    assert chosen({"gather": 1.0}) == "gather"  # others cannot be computed


def test_a_product_is_measured_once_while_a_program_is_traced(compilations):
    random = np.random.default_rng(0)
    x, a, b = (random.standard_normal(s, np.float32) for s in ((3, 4, 5), (2, 6, 5), (2, 6, 7)))
    slots = np.array([1, 0, 1])
    product = Product(3, 4, 2, 6, 5, 7, "float32")
    assert Product.of(jnp.asarray(x), jnp.asarray(a), jnp.asarray(b)) == product
    y = jax.jit(jax.vmap(grouped_matmul.dot, (0, 0, None, None)))(x, slots, a, b)
    wanted = [row @ a[slot].T @ b[slot] for row, slot in zip(x, slots, strict=True)]
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    with compilations() as counted:
        times = seconds(product, jax.default_backend())  # of the trace
    assert not counted
    assert times.keys() == {"gather", "concat"} and all(each > 0 for each in times.values())
    assert fastest(product) == chosen(times)


@pytest.mark.parametrize(
    ("inputs", "turns", "shortest"),
    [(4, [5, 14, 3, 4, 4, 2, 6, 8, 9, 9], 2), (5, [5, 16, 3, 4, 6, 9], 16)],
)
def test_the_shortest_of_several_times_counts(inputs, turns, shortest, monkeypatch):
    """A way that at first takes more than three times as long as the usual one has no others."""
    ticks = itertools.chain.from_iterable((0.0, each) for each in turns)
    monkeypatch.setattr(grouped_matmul, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    times = seconds(Product(2, 3, 2, 1, inputs, 7, "float32"), "cpu")
    assert times == {"gather": 3, "concat": shortest}
    assert next(ticks, None) is None


def test_nothing_is_measured_where_it_could_not_decide(monkeypatch, compilations):
    with compilations() as counted:
        assert fastest(Product(1, 4, 3, 6, 5, 7, "float32")) == "gather"
        monkeypatch.setattr(jax, "process_count", lambda: 2)  # all must compile the same program
        assert fastest(Product(3, 4, 3, 6, 5, 7, "float32")) == "gather"
    assert not counted


def test_what_the_device_cannot_compute_is_left_out(monkeypatch):
    def fails(*arrays):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    product = Product(2, 3, 2, 1, 2, 2, "float32")
    monkeypatch.setattr(grouped_matmul, "WAYS", {**WAYS, "concat": fails})
    assert seconds(product, jax.default_backend()).keys() == {"gather"}
    monkeypatch.setattr(grouped_matmul, "WAYS", {**WAYS, "gather": fails})
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED"):
        seconds(product._replace(rows=3), jax.default_backend())
