"""Plain LoRA for servers, and every format: each matrix has its own update, whatever the others.

The updates are computed from the files by the formulas of PEFT, loralib and the servers' loaders;
llama.cpp's on converted weights gives the merged, converted weights.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file
from small_decoder import random_decoder, random_ids

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.contract.toys import noisy
from lora_jax.interchange.names import Names, names_of
from lora_jax.interchange.save_plain_lora import save_plain_lora, write_gguf_lora
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
    return adapted, noisy(trainable, scale=1.0), frozen


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
    expected = by_numpy(adapted.apply)(trainable, frozen, X)
    np.testing.assert_allclose(
        by_numpy(back.adapted.apply)(back.trainable, back.frozen, X), expected, atol=1e-5
    )


def test_what_is_no_lora_is_cut_to_a_rank(params, tmp_path):
    adapted, trainable, frozen = trained(params, {"up/kernel": variants.make("dora", rank=1)})
    written = lj.save_plain_lora(tmp_path, trainable, frozen, NAMES, svd_rank=2)
    merged, cut = by_numpy(adapted.merge)(trainable, frozen), []
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
    trainable = noisy(trainable, scale=1.0)
    place = lambda path, _: Place("c_attn.weight", False, "qkv".index(path[0]))  # noqa: E731
    written = lj.save_plain_lora(
        tmp_path, trainable, frozen, Names(place, lambda _: False), svd_rank=2, served=None
    )
    after = by_numpy(adapted.merge)(trainable, frozen)
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
        ("dora", "up/kernel", (), "DoRA is not a plain LoRA.*merge the weights, or give svd_rank"),
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
    begun = adapted.init(jax.random.key(0), params, X)
    with pytest.raises(ValueError, match="'up/bias' is adapted with 'up/kernel', and plain LoRA"):
        lj.save_plain_lora(tmp_path, *begun, NAMES, svd_rank=2)


PARAMS = {
    name: {"kernel": jax.random.normal(key, (6, 5))}
    for name, key in zip("qkv", jax.random.split(jax.random.key(1), 3), strict=True)
}
SETS = {
    "one scale": [{"rank": 2, "alpha": 3.0}] * 3,
    "one scale, other ranks": [{"rank": r, "alpha": 1.5 * r} for r in (1, 2, 4)],
    "one rank, other alphas": [{"rank": 2, "alpha": a} for a in (3.0, 5.0, 7.0)],
    "one alpha, other ranks": [{"rank": r, "alpha": 3.0} for r in (1, 4, 2)],
    "other rules": [
        {"rank": 2, "alpha": 3.0},
        {"rank": 3, "alpha": 5.0, "scale": "alpha/sqrt(rank)"},
        {"rank": 2, "alpha": 0.25, "scale": "alpha", "max_rank": 4},
    ],
    "moved starts": [
        {"rank": 1, "alpha": 3.0},
        {"rank": 2, "alpha": 5.0, "initialization": "pissa"},
        {"rank": 1, "alpha": 7.0, "initialization": "olora"},
    ],
    "no plain LoRA": [
        {"rank": 2, "alpha": 3.0},
        {"name": "adalora", "rank": 3, "target_rank": 3, "alpha": 5.0},
        {"rank": 1, "alpha": 7.0},
    ],
}


SCALES = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / rank**0.5,
    "alpha": lambda alpha, rank: alpha,
}


def product(factors):
    """A^T B, or AdaLoRA's A^T diag(e) B."""
    return (factors["a"] * factors.get("e", jnp.ones(1))[:, None]).T @ factors["b"]


def apply(params, x):
    return [x @ params[name]["kernel"] for name in "qkv"]


def names(joined):
    def place(path, layer):
        if joined:  # as GPT-2's
            return Place("c_attn.weight", False, "qkv".index(path[0]))
        return Place(f"{path[0]}_proj.weight", True, None)

    return Names(place, lambda path: False)


def from_peft(folder, joined):
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for module in ["c_attn"] if joined else [f"{n}_proj" for n in "qkv"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        own = [config.get(f"{x}_pattern", {}).get(module) for x in ("alpha", "rank")]
        alpha, rank = own[0] or config["lora_alpha"], own[1] or config["r"]
        assert rank == len(a)
        found[module] = alpha / rank * (b @ a).T
    return found["c_attn"] if joined else np.concatenate([*found.values()], 1)


def from_loralib(file, joined):
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        said = opened.metadata()
    alpha, rank = float(said["lora_alpha"]), int(said["r"])
    pairs = []
    for module in ["c_attn"] if joined else [f"{n}_proj" for n in "qkv"]:
        a, b = (tensors[f"{module}.lora_{x}"] for x in "AB")
        parts = 3 if joined else 1
        pairs += zip(np.split(a, parts), np.split(b, parts), strict=True)
    assert all(len(a) == rank for a, _ in pairs)
    return np.concatenate([alpha / rank * (b @ a).T for a, b in pairs], 1)


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("chosen", SETS)
def test_each_matrix_keeps_its_own_update(chosen, joined, tmp_path):
    targets = {
        f"{name}/kernel": variants.make(**{"name": "lora", **settings})
        for name, settings in zip("qkv", SETS[chosen], strict=True)
    }
    adapted = lj.adapt(apply, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), PARAMS, jnp.ones((1, 6)))
    updates = []
    for n, settings in enumerate(SETS[chosen]):
        own, rank = trainable["adapters"][f"{'qkv'[n]}/kernel"], settings["rank"]
        before = product(own)
        for name, x in own.items():  # rows beyond the rank are zero
            moved = x[:rank] + jax.random.normal(jax.random.key(n), x[:rank].shape)
            own[name] = x.at[:rank].set(moved)
        by = SCALES[settings.get("scale", "alpha/rank")](settings["alpha"], rank)
        updates.append(by * (product(own) - before))
    wanted = np.concatenate(updates, 1)
    merged = by_numpy(adapted.merge)(trainable, frozen)
    found = np.concatenate([merged[n]["kernel"] - PARAMS[n]["kernel"] for n in "qkv"], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    adapter = trainable, frozen, names(joined)
    save_plain_lora(tmp_path / "plain", *adapter, served=None)
    found = {"plain": from_peft(tmp_path / "plain", joined)}
    if chosen != "no plain LoRA":
        lj.save_peft(tmp_path / "peft", *adapter)
        found["peft"] = from_peft(tmp_path / "peft", joined)
    lj.save_loralib(tmp_path / "loralib.safetensors", *adapter)
    found["loralib"] = from_loralib(tmp_path / "loralib.safetensors", joined)
    for form, update in found.items():
        np.testing.assert_allclose(update, wanted, rtol=1e-4, atol=1e-4, err_msg=form)


# a decoder of the fixtures -> its architecture in llama.cpp
CASES = {
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "gpt2": ("gpt2", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_is_merged(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    from gguf_files import as_converted

    arch, changes = CASES[name]
    model = random_decoder(name, **changes)
    forward, params = lj.from_nnx(model)
    targets = {
        "layers/(attention/.*|up)/kernel": variants.make("rslora", rank=1, alpha=5.0),
        "layers/down/kernel": variants.make("lora", rank=2, alpha=3.0),
    }
    adapted = lj.adapt(forward, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), params, random_ids())
    trainable = noisy(trainable)
    names = names_of(model.config)
    lj.save_plain_lora(tmp_path / "plain", trainable, frozen, names, served=None)
    path = write_gguf_lora(tmp_path / "adapter.gguf", tmp_path / "plain", model.config)

    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == arch
    alpha = fields["adapter.lora.alpha"]
    graph, _ = nnx.split(model)
    merged = nnx.merge(graph, by_numpy(adapted.merge)(trainable, frozen))
    after = dict(as_converted(merged, arch))
    changed = 0
    for weight, before in as_converted(model, arch):
        a, b = (tensors.pop(f"{weight}.lora_{each}", None) for each in "ab")
        if a is not None:
            rank = b.shape[1]
            before = before + alpha / rank * (b @ a)
            changed += 1
        np.testing.assert_allclose(before, after[weight], atol=2e-6, err_msg=weight)
    assert tensors == {} and changed == model.config.num_hidden_layers * (
        4 if arch == "gpt2" else 6
    )


def test_a_file_has_no_such_tensor(tmp_path):
    """A folder of another family, say."""
    pytest.importorskip("gguf")
    names = lj.names_from_patterns({"up/kernel": "encoder.{layer}.up"})
    params = {"up": {"kernel": jnp.ones((1, 6, 6))}}
    adapted = lj.adapt(lambda p, x: x @ p["up"]["kernel"][0], variants.make("lora", rank=1))
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((1, 6)))
    lj.save_plain_lora(tmp_path / "plain", trainable, frozen, names, served=None)
    config = random_decoder("llama").config
    with pytest.raises(ValueError, match=r"of a llama have no tensor 'encoder\.0\.up\.weight'"):
        write_gguf_lora(tmp_path / "adapter.gguf", tmp_path / "plain", config)
    assert not (tmp_path / "adapter.gguf").exists()
