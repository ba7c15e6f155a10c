"""One adapter in one file: what it holds, and for what it is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.contract import toys


def toy(name, seed=4, **settings):
    return toys.toy(variants.make(name, **settings), "float32", seed=seed)


@pytest.mark.parametrize("name", variants.names())
def test_a_file_makes_an_adapter_whole_whatever_key_began_it(name, tmp_path):
    """Random constants (VeRA's projections, LoRA-FA's A) come from the file, not from a new key."""
    first, other = toy(name), toy(name, seed=5)
    path = lj.save_adapter(tmp_path, first.moved, first.frozen, {"note": "x"})
    assert path == tmp_path / "adapter.safetensors"
    trainable, frozen, meta = lj.load_adapter(tmp_path, other.trainable, other.frozen)
    assert meta == {"note": "x"}
    assert jax.tree.structure(frozen) == jax.tree.structure(first.frozen)
    again = dataclasses.replace(other, frozen=frozen)
    np.testing.assert_array_equal(again.output(trainable), first.output(first.moved))


def test_the_base_is_not_in_the_file(tmp_path):
    one = toy("lora", rank=1)
    path = lj.save_adapter(tmp_path / "a.safetensors", one.moved, one.frozen)
    numbers = sum(leaf.size for leaf in jax.tree.leaves((one.moved, one.frozen.constants)))
    assert path.stat().st_size < 4 * numbers + 6000


LORA, SMALL, DORA = (
    variants.make("lora"),
    variants.make("lora", rank=2),
    variants.make("dora"),
)


@pytest.mark.parametrize(
    "saved, expected, said",
    [
        (LORA, DORA, r"has nothing for 'adapters/embed/m', expected \[8\]"),
        (DORA, LORA, r"has \[8\] for 'adapters/embed/m', expected nothing"),
        (LORA, SMALL, r"has \[8, 16\] for 'adapters/embed/a', expected \[2, 16\]"),
    ],
)
def test_another_adapter_is_refused(saved, expected, said, tmp_path):
    one = toys.toy(LORA, "float32")

    def init(variant):
        adapted = lj.adapt(toys.decoder, variant, "embed")
        return adapted.init(jax.random.key(0), one.params, one.ids)

    lj.save_adapter(tmp_path, *init(saved))
    with pytest.raises(ValueError, match=said) as error:
        lj.load_adapter(tmp_path, *init(expected))
    assert "\n" not in str(error.value)
