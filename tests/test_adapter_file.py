"""One adapter in one file: what it holds, and for what it is refused."""

import chex
import jax
import numpy as np
import own_code
import pytest

import lora_jax as lj
import variants
from lora_jax.contract import toys

# Toys have random trainables, as if AdaLoRA's budget had been forgotten.
pytestmark = pytest.mark.filterwarnings("ignore::lora_jax.TrainingWarning")


def toy(name, seed=4, **settings):
    return toys.toy(variants.make(name, **settings), "float32", seed=seed)


@pytest.mark.parametrize("name", own_code.names())
def test_a_file_makes_an_adapter_whole_whatever_key_began_it(name, tmp_path):
    """Random constants (VeRA's projections, LoRA-FA's A) come from the file, not from a new key.

    The same numbers where another run begins from it.
    """
    first, other = toy(name), toy(name, seed=5)
    path = lj.save_adapter(tmp_path, first.moved, first.frozen, {"note": "x"})
    assert path == tmp_path / "adapter.safetensors"
    *read, meta = lj.load_adapter(tmp_path, other.trainable, other.frozen)
    assert meta == {"note": "x"}
    adapts = variants.find(name).adapts
    begun = [lj.start_from(path, other.trainable, other.frozen)] if adapts else []
    for each in (read, *begun):
        assert jax.tree.structure(tuple(each)) == jax.tree.structure((first.moved, first.frozen))
        chex.assert_trees_all_equal(tuple(each), (first.moved, first.frozen))


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
        return jax.jit(adapted.init)(jax.random.key(0), one.params, one.ids)

    lj.save_adapter(tmp_path, *init(saved))
    with pytest.raises(ValueError, match=said) as error:
        lj.load_adapter(tmp_path, *init(expected))
    assert "\n" not in str(error.value)


def heads(variant, classes):
    """A matrix that is adapted and a head, trained in full, for so many classes."""

    def forward(params, x):
        return x @ params["w"] @ params["head"] + params["bias"]

    shapes = {"w": (6, 5), "head": (5, classes), "bias": (1, 1), "x": (2, 6)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    x = params.pop("x")
    adapted = lj.adapt(forward, variant, "w", ["head", "bias"])
    return jax.jit(adapted.init)(jax.random.key(0), params, x)


def test_a_head_for_other_classes_begins_anew(tmp_path):
    variant = variants.make("lora", rank=2)
    trained, frozen = heads(variant, 3)
    trained = jax.tree.map(lambda x: np.asarray(x) + 1, trained)
    path = lj.save_adapter(tmp_path, trained, frozen)
    new, _ = heads(variant, 2)
    begun, _ = lj.start_from(path, *heads(variant, 2))
    chex.assert_trees_all_equal(begun["adapters"], trained["adapters"])
    np.testing.assert_array_equal(begun["params"]["bias"], trained["params"]["bias"])
    np.testing.assert_array_equal(begun["params"]["head"], new["params"]["head"])


def test_numbers_stay_those_of_the_new_run(tmp_path):
    theirs = variants.make("lora", rank=2, dropout=0.5, learning_rate_ratio=2.0)
    path = lj.save_adapter(tmp_path, *heads(theirs, 3))
    own = variants.make("lora", rank=2, dropout=0.25, learning_rate_ratio=8.0)
    _, frozen = lj.start_from(path, *heads(own, 3))
    assert float(frozen.constants["w"]["keep"]) == 0.75
    assert float(frozen.constants["w"]["ratio"]) == 8.0


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"rank": 3}, r"has \[2, 6\] for the adapter 'w/a', expected \[3, 6\]"),
        ({"rank": 2, "alpha": 5.0}, "'w' was trained with another scale; set its alpha"),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused(settings, said, tmp_path):
    path = lj.save_adapter(tmp_path, *heads(variants.make("lora", rank=2), 3))
    with pytest.raises(ValueError, match=said) as error:
        lj.start_from(path, *heads(variants.make("lora", **settings), 3))
    assert "\n" not in str(error.value)
