"""Files of microsoft/LoRA without loralib: its formula in NumPy, and hostile files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_archive
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.interchange.names import Names
from lora_jax.models.parts.family import Place

NAMES = lj.names_from_patterns(
    {"up/kernel": "encoder.{layer}.up", "qkv/kernel": "attn.qkv", "word/embedding": "word"}
)
IDS = np.array([[0, 3], [4, 4]])


def draw(*shape):
    return 0.5 * np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    shapes = {
        "word": {"embedding": (5, 4)},
        "up": {"kernel": (2, 4, 4), "bias": (2, 4)},
        "qkv": {"kernel": (4, 6)},
    }
    return jax.tree.map(lambda s: jnp.asarray(draw(*s)), shapes, is_leaf=lambda x: type(x) is tuple)


def forward(params, ids):
    x = params["word"]["embedding"][ids]
    for layer in range(2):
        x = jnp.tanh(x @ params["up"]["kernel"][layer] + params["up"]["bias"][layer][None, None])
    return x @ params["qkv"]["kernel"]


def by_formula(params, updates, bias=None):
    """The forward pass with an update (out, in) added to each module's weight, in NumPy."""
    p = jax.tree.map(np.asarray, params)
    x = (p["word"]["embedding"] + updates.get("word", np.zeros((4, 5))).T)[IDS]
    for layer in range(2):
        w = p["up"]["kernel"][layer] + updates.get(f"encoder.{layer}.up", np.zeros((4, 4))).T
        b = p["up"]["bias"][layer] if bias is None or layer != 1 else bias
        x = np.tanh(x @ w + b)
    return x @ (p["qkv"]["kernel"] + updates.get("attn.qkv", np.zeros((6, 4))).T)


def load(file, params, names=NAMES, **options):
    options = {"alpha": 3.0, **options}
    return lj.load_loralib(file, variants.from_peft, names, forward, params, IDS, **options)


def pair(module, n, rank, m):
    """lora_A (rank, n) and lora_B (m, rank)."""
    return {f"{module}.lora_A": draw(rank, n), f"{module}.lora_B": draw(m, rank)}


def update(tensors, module, alpha=3.0):
    a, b = (tensors[f"{module}.lora_{each}"] for each in "AB")
    return alpha / len(a) * b @ a


@pytest.fixture(scope="module")
def tensors():
    """Other ranks in each layer, an embedding, and the bias of one layer."""
    linear = pair("encoder.0.up", 4, 1, 4) | pair("encoder.1.up", 4, 3, 4)
    return linear | pair("word", 5, 2, 4) | {"encoder.1.up.bias": draw(4)}


@pytest.mark.parametrize("name", ["file.safetensors", "file.bin", "parallel.pt"])
def test_what_is_read(name, tensors, params, tmp_path):
    """Of safetensors, of torch.save, and of a parallel model."""
    file = tmp_path / name
    if name == "file.safetensors":
        save_file(tensors, file)
    else:
        before = "module." if name == "parallel.pt" else ""
        torch_archive.save_bin(file, {f"{before}{n}": x for n, x in tensors.items()})
    loaded = load(file, params)
    modules = ("encoder.0.up", "encoder.1.up", "word")
    updates = {module: update(tensors, module) for module in modules}
    expected = by_formula(params, updates, tensors["encoder.1.up.bias"])
    got = by_numpy(loaded.adapted.apply)(loaded.trainable, loaded.frozen, IDS)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert [*loaded.trainable["params"]] == ["up/bias"]


def test_a_model_whose_own_names_begin_as_those_of_a_parallel_one(params, tmp_path):
    names = lj.names_from_patterns({"qkv/kernel": "module.qkv"})
    save_file(pair("module.qkv", 4, 1, 6), file := tmp_path / "file.safetensors")
    assert load(file, params, names).trainable["adapters"].keys() == {"qkv/kernel"}


def grouped(a, b, enabled, alpha):
    """The update of a MergedLinear (out, in): a product for each part, zeros for the others."""
    blocks = zip(np.split(a, sum(enabled)), np.split(b, sum(enabled)), strict=True)
    size = len(b) // sum(enabled)
    update = np.zeros((size * len(enabled), a.shape[1]), np.float32)
    for part in np.flatnonzero(enabled):
        own_a, own_b = next(blocks)
        update[part * size : (part + 1) * size] = alpha / len(own_a) * own_b @ own_a
    return update


def apart(params):
    """The parameters with the parts of `qkv` each for itself, their function, and their names."""
    parts = dict(zip("qkv", jnp.split(params["qkv"]["kernel"], 3, axis=1), strict=True))
    others = {name: x for name, x in params.items() if name != "qkv"}

    def apply(params, ids):
        kernel = jnp.concatenate([params[name]["kernel"] for name in "qkv"], axis=1)
        return forward({**params, "qkv": {"kernel": kernel}}, ids)

    def place(path, layer):
        if path[0] in parts:
            return Place("attn.qkv.weight", False, "qkv".index(path[0]))
        return NAMES.place(path, layer)

    return others | {n: {"kernel": x} for n, x in parts.items()}, apply, Names(place, NAMES.stacked)


@pytest.mark.parametrize("enabled", [(True, False, True), (False, True, False), (True, True, True)])
def test_parts_of_a_merged_linear(enabled, params, tmp_path):
    """One parameter here for all, or one for each, where only those with an adapter get one."""
    n = sum(enabled)
    made = {"attn.qkv.lora_A": draw(n, 4), "attn.qkv.lora_B": draw(2 * n, 1)}
    save_file(made, file := tmp_path / "merged.safetensors")
    expected = by_formula(params, {"attn.qkv": grouped(*made.values(), enabled, 3.0)})
    whole = load(file, params, enable_lora=enabled)
    np.testing.assert_allclose(whole.adapted.apply(*whole[1:3], IDS), expected, atol=1e-5)

    parts, apply, names = apart(params)
    given = None if all(enabled) else enabled  # the shapes say that all are
    cut = lj.load_loralib(
        file, variants.from_peft, names, apply, parts, IDS, alpha=3.0, enable_lora=given
    )
    np.testing.assert_allclose(cut.adapted.apply(*cut[1:3], IDS), expected, atol=1e-5)
    adapted = {f"{name}/kernel" for name, each in zip("qkv", enabled, strict=True) if each}
    assert cut.trainable["adapters"].keys() == adapted
    written = lj.save_loralib(tmp_path / "again.safetensors", *cut[1:3], names)
    for name, tensor in load_file(written.file).items():
        np.testing.assert_allclose(tensor, made[name], rtol=1e-6, err_msg=name)
    options = written.layers["attn.qkv"].options
    assert options == {"r": 1, "lora_alpha": 3, "enable_lora": [*enabled], "fan_in_fan_out": True}
    again = lj.load_loralib(written.file, variants.from_peft, names, apply, parts, IDS)
    assert again.trainable["adapters"].keys() == adapted


@pytest.mark.parametrize(
    ("enabled", "said"),
    [
        (
            None,
            r"2 of 3 parts are adapted, .*: enable_lora=\(True, False, True\) is what the paper",
        ),
        ((True, False), r"enable_lora=\(True, False\), and 2 of 3 parts"),
        ((True, False, False), r"enable_lora=\(True, False, False\), and 2 "),
    ],
)
def test_parts_that_are_not_said(enabled, said, params, tmp_path):
    save_file(TWO_OF_THREE, file := tmp_path / "merged.safetensors")
    parts, apply, names = apart(params)
    with pytest.raises(ValueError, match=rf"merged.safetensors: 'attn.qkv': {said}"):
        lj.load_loralib(
            file, variants.from_peft, names, apply, parts, IDS, alpha=1.0, enable_lora=enabled
        )


def trained(params, targets, **options):
    adapted = lj.adapt(forward, targets=targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), params, IDS)
    return adapted, jax.tree.map(lambda x: x + draw(*x.shape), trainable), frozen


LORA = variants.make("lora", rank=1, alpha=5.0)


@pytest.mark.parametrize(
    ("other", "rank", "alpha"),
    [
        (variants.make("lora", rank=1, alpha=5.0), 1, 5),
        (variants.make("lora", rank=3, alpha=15.0), 3, 15),  # of one scale
        (variants.make("rslora", rank=3, alpha=2.0), 3, 3),  # of two
        (variants.make("pissa", rank=1, alpha=5.0), 2, 10),
    ],
)
def test_what_is_written(other, rank, alpha, params, tmp_path):
    """One rank and one alpha for all layers, beside biases that train in full."""
    targets = {lj.layers("up/kernel", 1): LORA, "qkv/kernel": other}
    adapted, trainable, frozen = trained(params, targets, also_train="up/bias")
    written = lj.save_loralib(tmp_path / "out.safetensors", trainable, frozen, NAMES)
    assert written[1:3] == (rank, alpha)
    tensors = load_file(written.file)
    names = {f"{m}.lora_{each}" for m in ("encoder.1.up", "attn.qkv") for each in "AB"}
    biases = {f"encoder.{layer}.up.bias" for layer in range(2)}
    assert tensors.keys() == names | biases
    assert {tensors[name].shape[name[-1] == "B"] for name in names} == {rank}
    with safe_open(written.file, "numpy") as file:
        header = {"format": "pt", "r": str(rank), "lora_alpha": str(alpha)}
        assert file.metadata() == header
    updates = {m: update(tensors, m, alpha) for m in ("encoder.1.up", "attn.qkv")}
    moved = {**params, "up": {**params["up"], "bias": trainable["params"]["up/bias"]}}
    expected = by_numpy(adapted.apply)(trainable, frozen, IDS)
    np.testing.assert_allclose(by_formula(moved, updates), expected, atol=1e-5)
    layer = {"kind": "Linear", "options": {"r": rank, "lora_alpha": alpha}}
    assert written.layers["encoder.1.up"]._asdict() == layer


def tied(params, ids):
    return forward(params, ids)[..., :4] @ params["word"]["embedding"].T


DORA, IA3 = variants.make("dora", rank=1), variants.make("ia3", biases=True)


@pytest.mark.parametrize(
    ("apply", "target", "variant", "also_train", "said"),
    [
        (forward, "qkv/kernel", DORA, (), "'qkv/kernel': DoRA is not a plain"),
        (forward, "up/kernel", IA3, (), "'up/bias' is adapted with 'up/kernel', and loralib"),
        (tied, "word/embedding", LORA, (), "'word/embedding' is also the head"),
        (tied, "up/kernel", LORA, "word/embedding", "'word/embedding' trains in"),
    ],
)
def test_what_loralib_does_not_have(apply, target, variant, also_train, said, params, tmp_path):
    adapted = lj.adapt(apply, targets={target: variant}, also_train=also_train)
    begun = adapted.init(jax.random.key(0), params, IDS)
    with pytest.raises(ValueError, match=rf"{said}.*merge the weights"):
        lj.save_loralib(tmp_path / "out.safetensors", *begun, NAMES)
    assert not any(tmp_path.iterdir())


WORD = pair("word", 5, 2, 4)
TWO_OF_THREE = {"attn.qkv.lora_A": draw(4, 4), "attn.qkv.lora_B": draw(4, 2)}
SAME = lj.names_from_patterns({"qkv/kernel": "same", "word/embedding": "same"})
TENSORS = [
    ({}, "no tensor of an adapter"),
    (
        {"head.lora_A": draw(1, 4)},
        "tensor 'head.lora_A' belongs to no module of this model; nearest: '",
    ),
    ({"word.lora_C": draw(1, 5)}, "'word' has lora_C, and not lora_A and lora_B alone"),
    ({"word.lora_A": draw(1, 5)}, "'word' has lora_A, and not lora_A and lora_B alone"),
    (
        pair("word", 5, 1, 3),
        r"'word': lora_A \(1, 5\) and lora_B \(3, 1\) do not fit a weight of",
    ),
    (pair("word", 6, 1, 4), r"'word': lora_A \(1, 6\) and lora_B \(4, 1\) do not fit"),
    (pair("word", 0, 1, 4), r"'word': lora_A \(1, 0\) and lora_B \(4, 1\) do not fit"),
    (pair("word", 4, 1, 5), r"word.*the file has \(1, 4\), this model .* ask for \(1, 5\)"),
    (
        {"word.lora_A": draw(2, 5), "word.lora_B": draw(4, 1)},
        r"'word': lora_A \(2, 5\) and lora_B \(4, 1\) do not fit",
    ),
    (
        {**pair("word", 5, 1, 4), "word.weight": draw(5, 4)},
        r"'word.weight' is the base's: .* save loralib.lora_state_dict\(model\) instead",
    ),
    ({**pair("word", 5, 1, 4), "encoder.1.up.bias": draw(3)}, r"up/bias: the file has \(3,\)"),
    (
        {"word.lora_A": np.full((1, 5), np.nan, np.float32), "word.lora_B": draw(4, 1)},
        "tensor 'word.lora_A' holds NaN",
    ),
    (
        {"word.lora_A": np.ones((1, 5), bool), "word.lora_B": draw(4, 1)},
        "tensor 'word.lora_A' is BOOL",
    ),
    (TWO_OF_THREE, "'attn.qkv': .* of a MergedLinear, give enable_lora$"),
]
HEADERS = [
    ({}, {"alpha": None}, "it does not say the lora_alpha that it was .*: give al"),
    ({"lora_alpha": "3.0"}, {"alpha": 4.0}, r"lora_alpha is 3.0 in its header, not 4.0"),
    ({"lora_alpha": "16 000"}, {}, "lora_alpha in its header is not JSON"),
    ({"enable_lora": "true,maybe"}, {}, "enable_lora in its header is not JSON"),
    ({"r": "99"}, {}, r"'word' has rank 2, and r in the header is \[99\]"),
    ({"r": "2.5"}, {}, r"'word' has rank 2, and r in the header is \[2.5\]"),
    ({}, {"enable_lora": (False,)}, r"enable_lora=\[False\], and no layer is a MergedLinear"),
    ({}, {"names": SAME}, "'qkv/kernel' and 'word/embedding' are both 'same.weight"),
]


@pytest.mark.parametrize(
    ("made", "header", "options", "said"),
    [
        *((made, {}, {}, said) for made, said in TENSORS),
        *((WORD, header, options, said) for header, options, said in HEADERS),
    ],
)
def test_files_of_another_model(made, header, options, said, params, tmp_path):
    save_file(made, file := tmp_path / "file.safetensors", metadata=header or None)
    with pytest.raises(ValueError, match=rf"file.safetensors: .*{said}|^{said}"):
        load(file, params, **options)


def test_the_header_says_alpha(params, tmp_path):
    save_file(WORD, file := tmp_path / "file.safetensors", metadata={"lora_alpha": "3.0"})
    scale = load(file, params, alpha=None).frozen.constants["word/embedding"]["scale"]
    assert scale == 1.5


def test_gpt2s_masks_are_no_biases(params, tmp_path):
    """`lora_state_dict(model, bias="all")` takes the buffers of older GPT-2 code."""
    made = pair("attn.qkv", 4, 1, 6) | {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}
    file = torch_archive.save_bin(tmp_path / "file.pt", made)
    assert load(file, params).trainable["params"] == {}
    own = lj.names_from_patterns({"qkv/kernel": "attn.qkv", "up/bias": "h.{layer}.attn.bias"})
    made = pair("attn.qkv", 4, 1, 6) | {"h.0.attn.bias": draw(4)}
    named = torch_archive.save_bin(tmp_path / "named.pt", made)
    assert [*load(named, params, own).trainable["params"]] == ["up/bias"]
    with pytest.raises(FileNotFoundError, match=r"gone.pt: no such file$"):
        load(tmp_path / "gone.pt", params)
