"""Adapters of weights that torch joins, as GPT-2's, or ties, by PEFT's formulas in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from lora_jax.interchange.names import Names
from lora_jax.models.parts.family import Place

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 6)).astype(np.float32)
PARAMS = {
    name: {
        "kernel": jnp.asarray(RANDOM.standard_normal((6, 3)), jnp.float32),
        "bias": jnp.asarray(RANDOM.standard_normal(3), jnp.float32),
    }
    for name in "qkv"
}
KERNEL, BIAS = (
    np.concatenate([PARAMS[n][leaf] for n in "qkv"], axis=-1) for leaf in ("kernel", "bias")
)
TENSOR = "base_model.model.c_attn.ia3_l"


def apply(params, x):
    return [x @ params[n]["kernel"] + params[n]["bias"][None] for n in "qkv"]


def place(path, layer):
    leaf = "bias" if path.endswith("bias") else "weight"
    return Place(f"c_attn.{leaf}", False, "qkv".index(path[0]))


NAMES = Names(place, lambda path: False)


def begun(targets):
    return lj.adapt(apply, targets=targets).init(jax.random.key(0), PARAMS, X)


@pytest.mark.parametrize("inputs", [False, True])
def test_ia3_is_read_and_written_again(inputs, tmp_path):
    scale = RANDOM.standard_normal((1, 6) if inputs else (9, 1)).astype(np.float32)
    save_file({TENSOR: scale}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "IA3", "feedforward_modules": ["c_attn"] if inputs else []}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, apply, PARAMS, X)
    found = np.concatenate(loaded.adapted.apply(*loaded[1:3], X), axis=1)
    expected = X * scale @ KERNEL + BIAS if inputs else (X @ KERNEL + BIAS) * scale.T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    lj.save_peft(tmp_path / "again", *loaded[1:3], NAMES)
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    np.testing.assert_array_equal(again[TENSOR], scale)


def test_queries_alone_leave_the_other_thirds(tmp_path):
    trainable, frozen = begun({"q/kernel": variants.make("ia3", biases=True)})
    trainable = jax.tree.map(lambda x: x * jnp.arange(2.0, 5.0), trainable)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    found = load_file(tmp_path / "adapter_model.safetensors")[TENSOR]
    np.testing.assert_array_equal(found[:, 0], [2, 3, 4, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"(q|k)": ("ia3", {"scales": "inputs"})}, "IA3 takes .* of one weight, or none of them"),
        ({"(q|k)": ("dora", {"rank": 1})}, "LORA takes .* of one weight, or none of them"),
        (
            {"q": ("lora", {"dropout": 0.1}), "(k|v)": ("lora", {})},
            "has one lora_dropout .*, and not 0.1 and 0.0",
        ),
        ({"(q|k)": ("vera", {"rank": 2})}, "VERA of them is not written"),
        (
            {"(q|k|v)": ("vblora", {"vector_length": 3})},
            "has one vblora_logits_A .*, and these differ",
        ),
        ({"q": ("hira", {"rank": 1}), "k": ("hira", {"rank": 2})}, "has one r .*, and not 1 and 2"),
        ({"q": ("hira", {}), "k": ("lora", {})}, "HIRA with LORA of them is not written"),
    ],
)
def test_what_is_not_written(targets, said, tmp_path):
    chosen = {
        f"{name}/kernel": variants.make(x, **settings) for name, (x, settings) in targets.items()
    }
    with pytest.raises(ValueError, match=f"PEFT.* {said}; merge the weights instead"):
        lj.save_peft(tmp_path, *begun(chosen), NAMES)


@pytest.mark.parametrize(
    ("config", "name", "shape", "said"),
    [
        (
            {"peft_type": "VERA", "r": 2},
            "vera_lambda_b",
            (9,),
            "VERA of a weight that joins .*merge",
        ),
        (
            {"peft_type": "C3A", "block_size": 3},
            "c3a_kernel",
            (4, 2, 3),
            "'c3a_kernel' cannot be cut",
        ),
    ],
)
def test_what_is_not_read(config, name, shape, said, tmp_path):
    tensor = {f"base_model.model.c_attn.{name}": np.ones(shape, np.float32)}
    save_file(tensor, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        lj.load_peft(tmp_path, variants.from_peft, NAMES, apply, PARAMS, X)


def test_adalora_keeps_the_rows_in_use(tmp_path):
    """Thirds of different ranks and scales are one adapter of scale 1; the formula is PEFT's."""
    targets = {
        "q/kernel": variants.make("adalora", rank=3, target_rank=2, alpha=5.0),
        "v/kernel": variants.make("adalora", rank=2, target_rank=2),
    }
    trainable, frozen = begun(targets)
    trainable = jax.tree.map(lambda x: x + 0.5, trainable)
    e = trainable["adapters"]["q/kernel"]["e"]
    trainable["adapters"]["q/kernel"]["e"] = e.at[1].set(0.0)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"c_attn.lora_E": [True, False, True, True, True]}
    assert config["init_r"] == 5
    found = load_file(tmp_path / "adapter_model.safetensors")
    a, b, e = (found[f"base_model.model.c_attn.lora_{name}"] for name in "ABE")
    update = (a * e).T @ b.T * config["lora_alpha"] / (config["init_r"] + 1e-5)
    expected = np.zeros((6, 9), np.float32)
    for n, alpha in ((0, 5 / 3), (2, 16 / 2)):
        mine = trainable["adapters"][f"{'qkv'[n]}/kernel"]
        product = alpha * (mine["a"] * mine["e"][:, None]).T @ mine["b"]
        expected[:, 3 * n : 3 * n + 3] = product
    np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "hira", "ia3"])
def test_a_third_in_full_beside_an_adapter_is_refused(method, tmp_path):
    adapted = lj.adapt(apply, targets={"q/kernel": variants.make(method)}, also_train="k/kernel")
    said = "'k/kernel' trains in full, and 'q/kernel' has an adapter; PEFT has both .* 'c_attn'"
    with pytest.raises(ValueError, match=said):
        lj.save_peft(tmp_path, *adapted.init(jax.random.key(0), PARAMS, X), NAMES)
    assert not any(tmp_path.iterdir())


def test_a_linear_of_torch_in_full_has_its_outputs_first(tmp_path):
    """GPT-2's weight is a Conv1D, stored (in, out); other models join theirs in a Linear."""

    def linear(path, layer):
        found = place(path, layer) if path != "o/kernel" else Place("o.weight", True, None)
        return found._replace(transposed=path.endswith("kernel"))

    params = {**PARAMS, "o": {"kernel": jnp.ones((6, 2))}}

    def forward(params, x):
        return [*apply(params, x), x @ params["o"]["kernel"]]

    targets = {"o/kernel": variants.make("lora", rank=1)}
    adapted = lj.adapt(forward, targets=targets, also_train="k/kernel")
    begun = adapted.init(jax.random.key(0), params, X)
    names = Names(linear, lambda path: False)
    lj.save_peft(tmp_path, *begun, names)
    lj.save_loralib(tmp_path / "loralib.safetensors", *begun, names)
    for file, before in (("adapter_model", "base_model.model."), ("loralib", "")):
        found = load_file(tmp_path / f"{file}.safetensors")
        np.testing.assert_array_equal(found[f"{before}c_attn.weight"], KERNEL.T)
    found = lj.load_peft(tmp_path, variants.from_peft, names, forward, params, X).trainable
    np.testing.assert_array_equal(found["params"]["k/kernel"], params["k"]["kernel"])


def test_biases_are_cut_into_thirds(tmp_path):
    a, b, added, bias = (RANDOM.standard_normal(n).astype("f4") for n in ((1, 6), (9, 1), 9, 9))
    tensors = {"base_layer.bias": bias, "lora_A.weight": a, "lora_B.weight": b}
    tensors |= {"lora_B.bias": added}
    named = {f"base_model.model.c_attn.{name}": x for name, x in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "lora_bias": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, apply, PARAMS, X)
    found = np.concatenate(loaded.adapted.apply(*loaded[1:3], X), axis=1)
    expected = X @ KERNEL + bias + 2 * (X @ a.T @ b.T + added)
    np.testing.assert_allclose(found, expected, atol=1e-5)


TIED_PLACES = {"table/embedding": "embed", "w/kernel": "w"}
TIED_NAMES = lj.names_from_patterns(TIED_PLACES, head="lm_head")
TABLE, W = (
    np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in ((5, 3), (3, 3))
)
TIED_PARAMS = {"table": {"embedding": jnp.asarray(TABLE)}, "w": {"kernel": jnp.asarray(W)}}
IDS = jnp.asarray([3, 0, 4, 1])
ROWS = "trainable_tokens_delta"


def untied(params, ids):
    return params["table"]["embedding"][ids]


def tied(params, ids):
    return untied(params, ids) @ params["table"]["embedding"].T


def between(params, ids):
    return untied(params, ids) @ params["w"]["kernel"] @ params["table"]["embedding"].T


def test_a_table_that_is_also_the_head(tmp_path):
    """PEFT changes the table alone, but for LoRA and trainable tokens of both."""
    names, params, ids = TIED_NAMES, {"table": {"embedding": jnp.ones((5, 3))}}, jnp.arange(4)

    def save(forward, variant, folder):
        adapted = lj.adapt(forward, variant, "table/embedding")
        lj.save_peft(tmp_path / folder, *adapted.init(jax.random.key(0), params, ids), names)

    with pytest.raises(ValueError, match="'table/embedding' is also the head, which PEFT's DoRA"):
        save(tied, variants.make("dora", rank=1), "none")
    save(tied, variants.make("trainable_tokens"), "tokens")
    lj.load_peft(tmp_path / "tokens", variants.from_peft, names, tied, params, ids)
    save(untied, variants.make("lora", rank=1), "lora")
    lj.load_peft(tmp_path / "lora", variants.from_peft, names, untied, params, ids)
    with pytest.raises(ValueError, match="'table/embedding' is also the head, which LORA leaves"):
        lj.load_peft(tmp_path / "lora", variants.from_peft, names, tied, params, ids)


def read_folder(folder, config, tensors):
    """What `between` computes with a folder of PEFT's, and its adapter."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": x for name, x in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    loaded = lj.load_peft(folder, variants.from_peft, TIED_NAMES, between, TIED_PARAMS, IDS)
    return np.asarray(loaded.adapted.apply(*loaded[1:3], IDS)), loaded


def test_tokens_of_both(tmp_path):
    """PEFT writes the rows twice; other rows of the head than of the table are refused."""
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [4, 1]}
    rows = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)
    found, _ = read_folder(tmp_path, config, {f"embed.{ROWS}": rows, f"lm_head.{ROWS}": rows})
    table = TABLE.copy()
    table[[4, 1]] = rows
    np.testing.assert_allclose(found, table[IDS] @ W @ table.T, rtol=1e-5)
    said = (
        f"'base_model.model.head.{ROWS}' belongs to no module, and is not equal to '.*embed.{ROWS}'"
    )
    with pytest.raises(ValueError, match=said):
        read_folder(tmp_path, config, {f"embed.{ROWS}": rows, f"head.{ROWS}": rows + 1})
    with pytest.raises(ValueError, match="to no module of this model, whose head is 'embed'"):
        read_folder(tmp_path, config, {f"lm_head.{ROWS}": rows})


def test_tokens_beside_lora(tmp_path):
    """Read, and written again as it was."""
    rows = np.asarray([[1, 2, 3]], np.float32)
    a, b = np.ones((1, 3), np.float32), np.asarray([[1], [2], [3]], np.float32)
    tensors = {f"embed.token_adapter.{ROWS}": rows, "w.lora_A.weight": a, "w.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["w"]}
    config["trainable_token_indices"] = {"embed": [3]}
    found, loaded = read_folder(tmp_path, config, tensors)
    table = TABLE.copy()
    table[3] = rows
    np.testing.assert_allclose(found, table[IDS] @ (W + 2 * a.T @ b.T) @ table.T, rtol=1e-5)
    lj.save_peft(tmp_path / "again", *loaded[1:3], TIED_NAMES)
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {**again, **config} == again
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert written.keys() == {f"base_model.model.{name}" for name in tensors}


def rewritten(folder, loaded):
    """The config and tensors of an adapter that is written again."""
    lj.save_peft(folder, *loaded[1:3], TIED_NAMES)
    with pytest.raises(ValueError, match="is also the head, of which these names say no module"):
        lj.save_peft(folder, *loaded[1:3], lj.names_from_patterns(TIED_PLACES))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["ensure_weight_tying"]
    tensors = load_file(folder / "adapter_model.safetensors")
    return config, {name.removeprefix("base_model.model."): x for name, x in tensors.items()}


LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "ensure_weight_tying": True}
OF_W = {"w.lora_A.weight": np.ones((1, 3), np.float32), "w.lora_B.weight": np.zeros((3, 1), "f4")}


def test_lora_of_a_table_and_of_the_head(tmp_path):
    """PEFT writes the factors of both, which are transposes; others are refused."""
    a, b = np.arange(5.0, dtype=np.float32)[None], np.asarray([[1], [2], [3]], np.float32)
    tensors = {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b}
    tensors |= {"lm_head.lora_A.weight": b.T, "lm_head.lora_B.weight": a.T}
    copies = {f"{module}.base_layer.weight": TABLE for module in ("embed", "lm_head")}
    found, loaded = read_folder(tmp_path, LORA, {**tensors, **copies})
    table = TABLE + 2 * (b @ a).T
    np.testing.assert_allclose(found, table[IDS] @ W @ table.T, rtol=1e-5)
    config, again = rewritten(tmp_path / "again", loaded)
    assert config["target_modules"] == ["embed", "lm_head"]
    assert again.keys() == tensors.keys()
    update = again["embed.lora_embedding_B"] @ again["embed.lora_embedding_A"]
    np.testing.assert_allclose(config["lora_alpha"] * update, 2 * b @ a)
    for head, of_table in (("lora_A.weight", "embedding_B"), ("lora_B.weight", "embedding_A")):
        np.testing.assert_array_equal(again[f"lm_head.{head}"], again[f"embed.lora_{of_table}"].T)
    with pytest.raises(
        ValueError, match=r"lm_head.lora_A.weight' belongs to no module, and is not equal"
    ):
        read_folder(tmp_path, LORA, {**tensors, "lm_head.lora_A.weight": b.T + 1})
    with pytest.raises(ValueError, match="'lm_head' has another scale than 'embed', its table"):
        read_folder(tmp_path, {**LORA, "alpha_pattern": {"lm_head": 3}}, tensors)
    of_rank_2 = {**LORA, "rank_pattern": {"lm_head": 2}, "alpha_pattern": {"lm_head": 4}}
    np.testing.assert_allclose(read_folder(tmp_path, of_rank_2, tensors)[0], found)
    sizes = {"embed": 3, "lm_head": 5}
    dora = {f"{x}.lora_magnitude_vector": np.ones(n, np.float32) for x, n in sizes.items()}
    with pytest.raises(ValueError, match="is also the head, whose DoRA in PEFT is not the table's"):
        read_folder(tmp_path, {**LORA, "use_dora": True}, {**tensors, **dora})


def test_a_table_that_trains_in_full_with_the_head(tmp_path):
    """`ensure_weight_tying`, and `save_embedding_layers`, which a larger vocabulary sets."""
    table = TABLE[::-1].copy()
    tensors = {**OF_W, "embed.weight": table, "lm_head.weight": table}
    found, loaded = read_folder(tmp_path, LORA, tensors)
    np.testing.assert_allclose(found, table[IDS] @ W @ table.T, rtol=1e-5)
    config, again = rewritten(tmp_path / "again", loaded)
    assert (config["target_modules"], config["modules_to_save"]) == (["w"], ["embed", "lm_head"])
    assert again.keys() == tensors.keys()
    np.testing.assert_array_equal(again["lm_head.weight"], table)
    with pytest.raises(ValueError, match="'table/embedding' is also the head, which PEFT leaves"):
        read_folder(tmp_path, LORA, {**OF_W, "embed.weight": table})
