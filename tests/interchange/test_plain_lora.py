"""Plain LoRA for servers: each loader's own formula, in Python, gives the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lora_jax as lj
import variants
from lora_jax.interchange.names import Names
from lora_jax.models.parts.family import Place

NAMES = lj.names_from_patterns(
    {"up/kernel": "model.layers.{layer}.mlp.up_proj", "head/kernel": "lm_head"}
)
X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 6)), jnp.float32)


def forward(params, x):
    for layer in range(2):
        x = jnp.tanh(x @ params["up"]["kernel"][layer])
    return x @ params["head"]["kernel"]


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    shapes = {"up": {"kernel": (2, 6, 6)}, "head": {"kernel": (6, 2)}}
    draw = lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def trained(params, targets, **options):
    adapted = lj.adapt(forward, targets=targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), params, X)
    random = np.random.default_rng(2)
    move = lambda x: x + jnp.asarray(random.standard_normal(x.shape), x.dtype)  # noqa: E731
    return adapted, jax.tree.map(move, trainable), frozen


def served(folder, params):
    """What every loader computes: alpha and rank are one number, which all tensors have.

    PEFT and vLLM scale by alpha / r, or by alpha / sqrt(r) with `use_rslora`; SGLang by alpha / r;
    llama.cpp by alpha and the rank of each tensor.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert config["r"] == config["lora_alpha"] and not config.get("use_rslora")
    x = np.asarray(X)
    for layer in range(2):
        stem, y = f"base_model.model.model.layers.{layer}.mlp.up_proj", 0.0
        if f"{stem}.lora_A.weight" in tensors:
            a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
            assert len(a) == config["r"]
            y = x @ a.T @ b.T
        x = np.tanh(x @ np.asarray(params["up"]["kernel"][layer]) + y)
    return x @ np.asarray(params["head"]["kernel"])


def test_all_loaders_compute_alike(params, tmp_path):
    """rsLoRA of rank 1 in the first layer, and of rank 3 with another alpha in the second."""
    targets = {
        lj.layers("up/kernel", 0): variants.make("rslora", rank=1, alpha=5.0),
        lj.layers("up/kernel", 1): variants.make("rslora", rank=3, alpha=2.0),
    }
    adapted, trainable, frozen = trained(params, targets)
    written = lj.save_plain_lora(tmp_path, trainable, frozen, NAMES)
    assert written[1:] == (3, 8, {})
    expected = np.asarray(adapted.apply(trainable, frozen, X))
    np.testing.assert_allclose(served(tmp_path, params), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "named"),
    [("up/kernel", ["up_proj"]), (lj.layers("up/kernel", 1), ["model.layers.1.mlp.up_proj"])],
    ids=["all layers", "one layer"],
)
def test_readers_that_know_the_model_find_all_tensors(path, named, params, tmp_path):
    """PEFT wraps each module that ends in a name of `target_modules`, so no other may."""
    adapted, trainable, frozen = trained(params, {path: variants.make("lora", rank=2)})
    lj.save_plain_lora(tmp_path, trainable, frozen, NAMES)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == named
    back = lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, params, X)
    expected = adapted.apply(trainable, frozen, X)
    np.testing.assert_allclose(
        back.adapted.apply(back.trainable, back.frozen, X), expected, atol=1e-5
    )


def test_what_is_no_lora_is_cut_to_a_rank(params, tmp_path):
    adapted, trainable, frozen = trained(params, {"up/kernel": variants.make("dora", rank=1)})
    written = lj.save_plain_lora(tmp_path, trainable, frozen, NAMES, svd_rank=2)
    merged, cut = adapted.merge(trainable, frozen), []
    for layer in range(2):
        before, after = (np.asarray(x["up"]["kernel"][layer]) for x in (params, merged))
        u, values, vt = np.linalg.svd(after - before)
        found = written.errors[f"model.layers.{layer}.mlp.up_proj"]
        error = np.linalg.norm(values[2:]) / np.linalg.norm(values)
        np.testing.assert_allclose(found, error, rtol=1e-3)
        cut.append(before + (u[:, :2] * values[:2]) @ vt[:2])
    expected = forward({**params, "up": {"kernel": jnp.asarray(np.stack(cut))}}, X)
    np.testing.assert_allclose(served(tmp_path, params), expected, atol=1e-4)


@pytest.mark.parametrize(
    "targets",
    [
        {"./kernel": variants.make("lora", rank=2)},
        {"./kernel": variants.make("dora", rank=1)},
        {"q/kernel": variants.make("lora", rank=3), "v/kernel": variants.make("dora", rank=1)},
    ],
    ids=["factors", "dense", "both"],
)
def test_parts_of_one_module_are_cut_together(targets, tmp_path):
    """Queries, keys and values are one weight in torch: its error, and its rank, are asked for."""
    random = np.random.default_rng(3)
    before = {
        n: {"kernel": jnp.asarray(random.standard_normal((6, 4)), jnp.float32)} for n in "qkv"
    }
    layer = lambda p, x: [x @ p[n]["kernel"] for n in "qkv"]  # noqa: E731
    adapted = lj.adapt(layer, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), before, X)
    trainable = jax.tree.map(
        lambda x: x + jnp.asarray(random.standard_normal(x.shape), x.dtype), trainable
    )
    place = lambda path, _: Place("c_attn.weight", False, "qkv".index(path[0]))  # noqa: E731
    written = lj.save_plain_lora(
        tmp_path, trainable, frozen, Names(place, lambda _: False), svd_rank=2, served=None
    )
    after = adapted.merge(trainable, frozen)
    update = np.concatenate([after[n]["kernel"] - before[n]["kernel"] for n in "qkv"], axis=1)
    u, values, vt = np.linalg.svd(update)
    error = np.linalg.norm(values[2:]) / np.linalg.norm(values)
    assert written.rank == 2
    assert written.errors == {"c_attn": pytest.approx(error, rel=1e-4)}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.c_attn.lora_{each}.weight"] for each in "AB")
    np.testing.assert_allclose((b @ a).T, (u[:, :2] * values[:2]) @ vt[:2], atol=1e-4)
    assert a.dtype == np.float32


@pytest.mark.parametrize(
    ("variant", "target", "also_train", "said"),
    [
        ("lora", "up/kernel", "head/kernel", "'head/kernel' trains in full, and servers take ad"),
        ("lora", "head/kernel", (), "'lm_head' is not served: q_proj, "),
        ("dora", "up/kernel", (), "DoRA is no plain LoRA.*merge the weights, or give svd_rank"),
    ],
)
def test_what_servers_do_not_have(variant, target, also_train, said, params, tmp_path):
    targets = {target: variants.make(variant, rank=1)}
    _, trainable, frozen = trained(params, targets, also_train=also_train)
    with pytest.raises(ValueError, match=said):
        lj.save_plain_lora(tmp_path / "out", trainable, frozen, NAMES)
    assert not (tmp_path / "out").exists()


def test_adapted_biases_are_not_dropped(tmp_path):
    layer = lambda p, x: x @ p["up"]["kernel"] + p["up"]["bias"][None]  # noqa: E731
    params = {"up": {"kernel": jnp.ones((6, 6)), "bias": jnp.ones(6)}}
    adapted = lj.adapt(layer, variants.make("ia3", biases=True), "up/kernel")
    trainable, frozen = adapted.init(jax.random.key(0), params, X)
    names = lj.names_from_patterns({"up/kernel": "up_proj"})
    with pytest.raises(ValueError, match="'up/bias' is adapted with 'up/kernel', and plain LoRA"):
        lj.save_plain_lora(tmp_path, trainable, frozen, names, svd_rank=2)
