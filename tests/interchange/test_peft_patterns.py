"""Settings of PEFT that differ between modules: what is written, and what is read."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import variants
from lora_jax.interchange.peft_config import compiled, joined, of_module
from lora_jax.interchange.peft_folder import PeftFolder


def by_pefts_lookup(pattern, default, module):
    """What PEFT's C3A and FourierFT do with a pattern, in their own words."""
    key = next((k for k in pattern if re.match(rf".*\.{k}$", module)), module)
    return pattern.get(key, default)


@pytest.mark.parametrize(("kind", "field"), [("C3A", "block_size"), ("FOURIERFT", "n_frequency")])
def test_a_module_is_found_by_its_whole_name(kind, field):
    sizes = {"blocks.0.up": 2, "blocks.1.up": 4, "blocks.1.down": 4, "head": 8}
    common = {"peft_type": kind, f"{field}_pattern": {}}
    config = joined({module: {**common, field: size} for module, size in sizes.items()})
    for module, size in sizes.items():
        assert by_pefts_lookup(config[f"{field}_pattern"], config[field], module) == size
        assert of_module(config, module, compiled(config))[field] == size


def test_a_name_that_peft_would_take_for_the_end_of_another():
    sizes = {"up": 2, "blocks.up": 4, "blocks.down": 4}
    common = {"peft_type": "C3A", "block_size_pattern": {}}
    with pytest.raises(ValueError, match=r"gives 'blocks.up' the block_size of 'up', too, for it"):
        joined({module: {**common, "block_size": size} for module, size in sizes.items()})


def test_hira_has_one_rank():
    with pytest.raises(ValueError, match=r"one r for all .* 3; merge the weights instead"):
        joined({"a": {"peft_type": "HIRA", "r": 2}, "b": {"peft_type": "HIRA", "r": 3}})
    config = {"peft_type": "HIRA", "r": 2, "rank_pattern": {"a": 3}}
    assert (
        of_module(config, "a", compiled(config))["r"] == 2
    )  # PEFT's HiRA does not heed the pattern


def test_no_tokens_are_not_the_last_one():
    with pytest.raises(ValueError, match="token_indices names no token"):
        variants.from_peft({"peft_type": "TRAINABLE_TOKENS", "token_indices": []})


@pytest.mark.parametrize(
    "config, shapes",
    [
        ({"peft_type": "OFT", "r": 4}, {"oft_R.weight": (2, 6)}),
        ({"peft_type": "OFT", "r": 4}, {}),
        ({"peft_type": "BOFT", "boft_block_num": 4}, {"boft_R": (1, 2, 3, 3)}),
        ({"peft_type": "BOFT", "boft_block_num": 4}, {"boft_R": (4, 4)}),
    ],
)
def test_numbers_of_blocks_are_those_of_the_tensors(config, shapes):
    with pytest.raises(ValueError, match=r"=4( blocks)? has no tensor"):
        variants.from_peft({**config, "tensor_shapes": shapes})


def test_a_series_of_which_nothing_is_left_is_refused():
    config = {"peft_type": "OFT", "num_cayley_neumann_terms": 2}
    with pytest.raises(ValueError, match="num_cayley_neumann_terms=2 is not here, 3 or more are"):
        variants.from_peft(config)


def by_get_pattern_key(pattern, default, module):
    """What PEFT's LoRA does with a pattern, in its own words."""
    key = next((k for k in pattern if re.match(rf"(.*\.)?({k})$", module)), module)
    return pattern.get(key, default)


@pytest.mark.parametrize(
    ("field", "theirs"), [("rank", by_get_pattern_key), ("block_size", by_pefts_lookup)]
)
def test_which_entry_is_that_of_a_module(field, theirs):
    """Names with dots that match any character, escaped ones, anchors, and expressions."""
    keys = ["up", "l.0.up", r"l\.0\.up", "^up", "^l.0.up", "l.[01].up", r"(l\.\d\.)?up", "up|l"]
    keys += ["l_0.up", r"l\.0|down", "0.up$", r"x\-y", "x-y", "(?<!0.)up", ".up", "l", "."]
    modules = ["up", "l.0.up", "l.1.up", "l_0.up", "a.l.0.up", "a.up", "x-y", "l", "a.l", "down"]
    random = np.random.default_rng(0)
    kind, name = ("LORA", "r") if field == "rank" else ("C3A", field)
    for _ in range(300):
        chosen = random.permutation(keys)[: random.integers(1, 6)]
        pattern = {str(key): n for n, key in enumerate(chosen, 2)}
        config = {"peft_type": kind, name: 1, f"{field}_pattern": pattern}
        patterns = compiled(config)
        for module in modules:
            wanted = theirs(pattern, 1, module)
            assert of_module(config, module, patterns)[name] == wanted, (pattern, module)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "ranks",
    [
        {"up": 2, "b.up": 4, "c": 4},
        {"up": 4, "b.up": 2, "c": 4},
        {"up": 2, "b.up": 3, "a.b.up": 5, "c": 4, "d": 4},
    ],
)
def test_a_name_that_ends_another_s(ranks, backwards):
    """Whatever the order of the keys: PEFT sorts them when it writes."""
    alike = {m: {"peft_type": "LORA", "r": r, "rank_pattern": {}} for m, r in ranks.items()}
    config = joined(alike)
    entries = sorted(config["rank_pattern"].items(), reverse=backwards)
    config["rank_pattern"] = dict(entries)
    for module, rank in ranks.items():
        assert by_get_pattern_key(config["rank_pattern"], config["r"], module) == rank
        assert of_module(config, module, compiled(config))["r"] == rank


def test_many_entries(monkeypatch):
    """Names are not compiled; there are not to be many expressions."""
    names = {f"layers.{n}.up": n for n in range(3000)}
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": names}
    monkeypatch.setattr(re, "compile", None)
    patterns = compiled(config)
    assert of_module(config, "m.layers.2999.up", patterns)["r"] == 2999
    monkeypatch.undo()
    config["rank_pattern"] = {f"layers[{n}]": 1 for n in range(1001)}
    with pytest.raises(ValueError, match="more than 1,000 keys are regular expressions, not names"):
        compiled(config)


def test_patterns_are_compiled_once_for_all_modules(monkeypatch, tmp_path):
    modules = [f"layers.{n}.up" for n in range(4)]
    keys = [module.replace("up", "u[p]") for module in modules]
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": dict.fromkeys(keys, 2)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(1)}, tmp_path / "adapter_model.safetensors")
    folder, counted = PeftFolder(tmp_path), []
    compile_ = re.compile
    monkeypatch.setattr(re, "compile", lambda *a, **k: counted.append(a) or compile_(*a, **k))
    assert [folder.settings(m)["r"] for m in (*modules, "other")] == [2, 2, 2, 2, 1]
    assert len(counted) == len(modules)
