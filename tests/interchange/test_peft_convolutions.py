"""Adapters of convolutions in PEFT's files, by PEFT's formula in JAX, and what is refused."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from lora_jax.contract.toys import noisy

NAMES = lj.names_from_patterns({"convs/kernel": "convs.{layer}", r"(\w+)/kernel": "{0}"})
NHWC = ("NHWC", "HWIO", "NHWC")
X = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)


def convolved(x, kernel, **options):
    return lax.conv_general_dilated(x, kernel, (1, 2), "SAME", dimension_numbers=NHWC, **options)


def forward(params, x):
    """A stack of two, and one of its own."""
    for layer in range(2):
        x = jnp.tanh(convolved(x, params["convs"]["kernel"][layer]))
    return convolved(x, params["last"]["kernel"])


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


PARAMS = {"convs": {"kernel": normal(2, 3, 2, 4, 4)}, "last": {"kernel": normal(2, 3, 4, 5)}}


def trained(forward, params, variant, targets="all-linear+conv", **options):
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), params, X)
    return adapted, noisy(trainable, scale=1.0), frozen


def test_files_have_two_convolutions(tmp_path):
    """One to `rank` channels, then 1 x 1, in torch's layout; and they are read again."""
    adapted, trainable, frozen = trained(forward, PARAMS, variants.make("lora", rank=2, alpha=3.0))
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    x = X
    for module, kernel in {
        "convs.0": PARAMS["convs"]["kernel"][0],
        "convs.1": PARAMS["convs"]["kernel"][1],
        "last": PARAMS["last"]["kernel"],
    }.items():
        a, b = (tensors[f"base_model.model.{module}.lora_{n}.weight"] for n in "AB")
        assert a.shape == (2, 4, *kernel.shape[:2]) and b.shape == (kernel.shape[3], 2, 1, 1)
        hidden = convolved(x, a.transpose(2, 3, 1, 0))
        y = convolved(x, kernel) + 1.5 * hidden @ b[:, :, 0, 0].T
        x = y if module == "last" else np.tanh(y)
    np.testing.assert_allclose(adapted.apply(trainable, frozen, X), x, atol=1e-4)
    loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, PARAMS, X)
    np.testing.assert_allclose(loaded.adapted.apply(*loaded[1:3], X), x, atol=1e-4)


def test_a_kernel_that_trains_in_full(tmp_path):
    _, trainable, frozen = trained(
        forward, PARAMS, variants.make("lora", rank=2), "convs/kernel", also_train="last/kernel"
    )
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    tensor = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.last.weight"]
    np.testing.assert_array_equal(tensor.transpose(2, 3, 1, 0), trainable["params"]["last/kernel"])
    loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, PARAMS, X)
    both = trainable["params"], loaded.trainable["params"]
    jax.tree.map(np.testing.assert_array_equal, *both)


def grouped(params, x):
    return convolved(x, params["w"]["kernel"], feature_group_count=2)


def upsampled(params, x):
    return lax.conv_transpose(x, params["w"]["kernel"], (2, 2), "SAME", dimension_numbers=NHWC)


def plain(params, x):
    return convolved(x, params["w"]["kernel"])


@pytest.mark.parametrize("changed", [0.0, 1.0])
def test_a_copy_of_a_kernel_that_is_the_bases_own(tmp_path, changed):
    """A file may hold the frozen weight below an adapter; it is in torch's layout."""
    _, trainable, frozen = trained(forward, PARAMS, variants.make("lora", rank=2))
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    file, name = tmp_path / "adapter_model.safetensors", "base_model.model.last.base_layer.weight"
    kernel = np.asarray(PARAMS["last"]["kernel"]).transpose(3, 2, 0, 1) + np.float32(changed)
    save_file({**load_file(file), name: np.ascontiguousarray(kernel)}, file)
    said = pytest.raises(ValueError, match="is not the 'last/kernel' of these params")
    with said if changed else contextlib.nullcontext():
        loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, PARAMS, X)
        assert loaded.trainable["adapters"].keys() == trainable["adapters"].keys()


REFUSED = {
    "groups": (grouped, (3, 3, 2, 6), "lora", "'w/kernel': PEFT's LoRA of 2 groups mixes .*merge"),
    "transposed": (upsampled, (3, 3, 4, 6), "lora", "convolution as PEFT has none, .*merge the"),
    "other": (plain, (3, 3, 4, 6), "lokr", "LOKR of a 2D convolution is not that of its matrix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    """Before anything is written."""
    own, shape, method, said = REFUSED[name]
    _, trainable, frozen = trained(
        own, {"w": {"kernel": normal(*shape)}}, variants.make(method), "w/kernel"
    )
    with pytest.raises(ValueError, match=said):
        lj.save_peft(tmp_path / "out", trainable, frozen, NAMES)
    assert not (tmp_path / "out").exists()


def test_other_files_hold_no_convolutions(tmp_path):
    _, trainable, frozen = trained(forward, PARAMS, variants.make("lora", rank=2))
    for save in (lj.save_loralib, lj.save_plain_lora):
        with pytest.raises(ValueError, match=r"'convs/kernel' .* only PEFT's files"):
            save(tmp_path / "out", trainable, frozen, NAMES)


def test_tensors_of_a_matrix_are_no_convolution(tmp_path):
    _, trainable, frozen = trained(forward, PARAMS, variants.make("lora", rank=2), "last/kernel")
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: x.reshape(len(x), -1) for name, x in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"'last' .*lora_A.weight .* the shape \(2, 4, 2, 3\)"):
        lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, PARAMS, X)
