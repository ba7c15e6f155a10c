"""PEFT folders of a model whose table is also its head, by NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants

PLACES = {"table/embedding": "embed", "w/kernel": "w"}
NAMES = lj.names_from_patterns(PLACES, head="lm_head")
TABLE, W = (
    np.random.default_rng(0).standard_normal(n).astype(np.float32) for n in ((5, 3), (3, 3))
)
PARAMS = {"table": {"embedding": jnp.asarray(TABLE)}, "w": {"kernel": jnp.asarray(W)}}
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
    names, params, ids = NAMES, {"table": {"embedding": jnp.ones((5, 3))}}, jnp.arange(4)

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
    loaded = lj.load_peft(folder, variants.from_peft, NAMES, between, PARAMS, IDS)
    return np.asarray(loaded.adapted.apply(*loaded[1:3], IDS)), loaded


def test_tokens_of_both(tmp_path):
    """PEFT writes the rows twice; other rows of the head than of the table are refused."""
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [4, 1]}
    rows = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)
    found, _ = read_folder(tmp_path, config, {f"embed.{ROWS}": rows, f"lm_head.{ROWS}": rows})
    table = TABLE.copy()
    table[[4, 1]] = rows
    np.testing.assert_allclose(found, table[IDS] @ W @ table.T, rtol=1e-5)
    said = f"'base_model.model.head.{ROWS}' is of no module, and not equal to '.*embed.{ROWS}'"
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
    lj.save_peft(tmp_path / "again", *loaded[1:3], NAMES)
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {**again, **config} == again
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert written.keys() == {f"base_model.model.{name}" for name in tensors}


def rewritten(folder, loaded):
    """The config and tensors of an adapter that is written again."""
    lj.save_peft(folder, *loaded[1:3], NAMES)
    with pytest.raises(ValueError, match="is also the head, of which these names say no module"):
        lj.save_peft(folder, *loaded[1:3], lj.names_from_patterns(PLACES))
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
    with pytest.raises(ValueError, match=r"lm_head.lora_A.weight' is of no module, and not equal"):
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
