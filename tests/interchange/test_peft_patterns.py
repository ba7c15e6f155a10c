"""Settings of PEFT that differ between modules: what is written, and what is read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import variants
from lora_jax.interchange.peft_config import compiled, joined, of_module
from lora_jax.peft_format import Peft
from lora_jax.variant import Base, Factors


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


def alphas_of_adalora(*alphas):
    return [{"peft_type": "ADALORA", "lora_alpha": alpha} for alpha in alphas]


def sizes_of_c3a(*sizes):
    return [{"peft_type": "C3A", "block_size_pattern": {}, "block_size": size} for size in sizes]


APART = [
    (
        ["a", "b"],
        [{"peft_type": "HIRA", "r": r} for r in (2, 3)],
        "one r for all .* 3; merge the w",
    ),
    (["a", "b"], alphas_of_adalora(2 + 2e-5 / 3, 5 + 5e-5 / 3), "'a' has 2.0 and 'b' 5.0;"),
    (["a", "b"], alphas_of_adalora(2 + 2e-5 / 3, 2.0), r"'a' has 2.00000666\d* and 'b' 2.0;"),
    (
        ["up", "blocks.up", "blocks.down"],
        sizes_of_c3a(2, 4, 4),
        "gives 'blocks.up' the block_size of 'up', too, for it",
    ),
    (
        ["a", "b"],
        [{"token_indices": [1]}, {"token_indices": [2]}],
        r"one token_indices .* 'a' has \[1\] and 'b' \[2\]",
    ),
]


@pytest.mark.parametrize(("modules", "each", "said"), APART, ids=[case[2] for case in APART])
def test_what_one_config_does_not_hold(modules, each, said):
    with pytest.raises(ValueError, match=said):
        joined(dict(zip(modules, each, strict=True)))


def test_adalora_takes_the_rank_for_an_alpha_that_is_not_positive():
    """As PEFT does, whose schedule also needs a total that holds what it does not name."""
    config = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 0, "tinit": 200, "tfinal": 1000}
    found = variants.from_peft(config)
    assert (found.alpha, found.total_steps) == (4.0, 1201)
    base = Base(jnp.eye(4), "io")
    own = variants.make("adalora", rank=4, target_rank=2, alpha=-8.0)
    begun = own.init(jax.random.key(0), base)
    begun = Factors({**begun.trainable, "e": jnp.ones(4)}, begun.constants)
    peft = own.to_peft(base, begun)
    scale = peft.settings["lora_alpha"] / (peft.settings["init_r"] + 1e-5)
    assert peft.settings["lora_alpha"] > 0
    np.testing.assert_allclose(scale * peft.tensors["lora_E"][:, 0], -2.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        # HiRA of PEFT does not heed the pattern; AdaLoRA's config inherits that of LoRA.
        ({"peft_type": "HIRA", "r": 2, "rank_pattern": {"a": 3}}, {"r": 2}),
        ({"peft_type": "ADALORA", "lora_alpha": 3, "alpha_pattern": {"a": 7}}, {"lora_alpha": 3}),
        ({"peft_type": "LORA", "alpha_pattern": {"a": 7}}, {"lora_alpha": 7}),
    ],
)
def test_patterns_of_a_method_that_has_them_and_of_others(config, wanted):
    found = of_module(config, "a", compiled(config))
    assert {name: found[name] for name in wanted} == wanted and "alpha" not in found


BLOCKS = [
    ({"r": 4}, (2, 6), "r=4 on 8 inputs has no tensor .* 2 blocks of 4 inputs"),
    ({"r": 4}, None, "r=4 blocks has no tensor of their angles"),
    ({"r": -3}, (1, 6), "OFT: r must be an integer of at least 1, got -3"),
    ({"oft_block_size": 7}, (2, 6), "oft_block_size=7 on 8 inputs has no tensor"),
    ({"oft_block_size": 4}, (2, 5), r"shape \(2, 5\), which is none of angles"),
    ({"oft_block_size": 4}, (0, 6), r"shape \(0, 6\), which is none of angles"),
    ({"r": 8}, (8, 0), "blocks of 1 input is not read: it turns nothing"),
    ({"boft_block_num": 4}, (1, 2, 4, 4), "boft_block_num=4 .* that of boft_block_num=2"),
    ({"boft_block_num": 4}, (4, 4), "boft_block_num=4 has no tensor of their rotations"),
    ({"boft_block_size": 4}, (1, 4, 2, 2), "boft_block_size=4 .* of boft_block_size=2"),
    ({"boft_n_butterfly_factor": 3}, (2, 4, 4, 4), "factor=3 .* that of .*_factor=2"),
    ({"boft_block_size": 3}, (1, 4, 3, 3), "blocks of 3 inputs is not read, as .* halves"),
    ({"boft_block_size": 1}, (1, 8, 1, 1), "blocks of 1 inputs is not read"),
]
MEANINGLESS = [
    ({"peft_type": "TRAINABLE_TOKENS", "token_indices": []}, "token_indices names no token"),
    (
        {"peft_type": "OFT", "num_cayley_neumann_terms": 2},
        "num_cayley_neumann_terms=2 is not here, 3 or more are",
    ),
    (
        {"peft_type": "OFT", "num_cayley_neumann_terms": 10**9},
        "neumann_terms must be at most 100, got 1000000000",
    ),
    ({"peft_type": "MISS", "init_weights": "bat"}, "init_weights='bat' is not here"),
    ({"peft_type": "MISS", "init_weights": "mini"}, "init_weights='mini' is not here"),
]
for settings, shape, refusal in BLOCKS:
    of_boft = any("boft" in name for name in settings)
    named = {"boft_R" if of_boft else "oft_R.weight": shape} if shape else {}
    config = {"peft_type": "BOFT" if of_boft else "OFT", **settings, "tensor_shapes": named}
    MEANINGLESS.append((config, refusal))


@pytest.mark.parametrize(("config", "said"), MEANINGLESS, ids=[said for _, said in MEANINGLESS])
def test_settings_that_peft_has_and_this_has_not(config, said):
    """Blocks are those that PEFT makes of its tensors."""
    with pytest.raises(ValueError, match=said):
        variants.from_peft(config)


@pytest.mark.parametrize(
    ("kind", "config", "shape", "found"),
    [
        ("OFT", {"r": 3}, (2, 6), {"block_size": 4}),  # of the divisors 2 and 4, the lower
        ("OFT", {"oft_block_size": 7}, (1, 28), {"block_size": 8}),
        ("OFT", {"oft_block_size": 32}, (2, 276), {"block_size": 24}),  # not 16, which is lower
        ("OFT", {"oft_block_size": 100}, (1, 28), {"block_size": 8}),
        ("BOFT", {"boft_n_butterfly_factor": 2}, (1, 2, 4, 4), {"butterfly_factors": 1}),
    ],
)
def test_tensors_tell_the_blocks_that_peft_has_adjusted(kind, config, shape, found):
    name = "oft_R.weight" if kind == "OFT" else "boft_R"
    variant = variants.from_peft({"peft_type": kind, **config, "tensor_shapes": {name: shape}})
    assert {field: getattr(variant, field) for field in found} == found


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


def test_many_entries():
    config = {
        "peft_type": "LORA",
        "r": 1,
        "rank_pattern": {f"layers.{n}.up": n for n in range(5000)},
    }
    assert of_module(config, "m.layers.2999.up", compiled(config))["r"] == 2999
    config["rank_pattern"]["down"] = 1
    with pytest.raises(ValueError, match="more than 5,000 keys"):
        compiled(config)


@pytest.mark.parametrize(
    "keys",
    [[f".*.*.*.*.*Z{n}" for n in range(990)], ["(" + ")(".join(["|".join("." * 28)] * 5) + ")"]],
)
def test_keys_that_take_long_together(keys):
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": dict.fromkeys(keys, 2)}
    with pytest.raises(ValueError, match=r"the keys up to .* may take too long to match"):
        compiled(config)


def test_usual_expressions_of_many_layers():
    keys = [rf".*layers\.{n}\.(self_attn|mlp)\..*proj" for n in range(200)]
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": {k: n for n, k in enumerate(keys)}}
    assert of_module(config, "model.layers.77.mlp.up_proj", compiled(config))["r"] == 77


DEFAULTS = {
    "LORA": {"rank": 8, "alpha": 8, "scale": "alpha/rank"},
    "ADALORA": {"rank": 12, "target_rank": 8, "alpha": 8, "orthogonality": 0.5, "delta_t": 1}
    | {"t_init": 0, "t_final": 0, "beta1": 0.85, "beta2": 0.85, "mode": "reference"},
    "VERA": {"rank": 256, "d_init": 0.1},
    "HIRA": {"rank": 32, "alpha": 1, "scale": "alpha"},
    "MISS": {"rank": 64},
    "OFT": {"block_size": 32, "neumann_terms": 5},
    "BOFT": {"block_size": 4, "butterfly_factors": 1},
    "LOHA": {"rank": 8, "alpha": 8},
    "LOKR": {"rank": 8, "alpha": 8, "factor": -1, "decompose_both": False},
    "HRA": {"rank": 8, "pairs": True},
    "FOURIERFT": {"frequencies": 1000, "alpha": 150},
    "RANDLORA": {"rank": 32, "alpha": 640},
    "SHIRA": {"rank": 32},
    "DELORA": {"rank": 8, "strength": 15},
    "GRALORA": {"rank": 32, "alpha": 64, "blocks": 2},
    "C3A": {"block_size": 256},
    "ROAD": {"per_pair": 1, "group_size": 64},
    "VBLORA": {"rank": 4, "num_vectors": 256, "vector_length": 256, "topk": 2},
}
"""What a config of PEFT 0.21 means that leaves everything out."""


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_config_leaves_out_is_pefts_default(kind):
    found = variants.from_peft({"peft_type": kind})
    wanted = DEFAULTS[kind] | ({"dropout": 0.0} if hasattr(found, "dropout") else {})
    assert {field: getattr(found, field) for field in wanted} == wanted


@pytest.mark.parametrize(
    ("seed", "drawn"),
    [({"random_loc_seed": 3}, [1, 11, 7, 6]), ({}, [5, 14, 4, 0])],
)
def test_places_are_those_that_torch_draws_from_the_seed(seed, drawn):
    """`torch.randperm(15, generator=torch.Generator().manual_seed(seed))[:4]`, 777 by default."""
    variant, base = variants.make("fourierft", frequencies=4), Base(jnp.ones((5, 3)), "io")
    begun = variant.init(jax.random.key(0), base)
    peft = Peft({"n_frequency": 4, **seed}, {"fourierft_spectrum": np.ones(4, np.float32)})
    found = variant.factors_from_peft(base, peft, begun)
    places = np.stack([np.remainder(drawn, 5), np.floor_divide(drawn, 5)])
    np.testing.assert_array_equal(found.constants["places"], places)
    # What PEFT would draw elsewhere, from the seed that its files are written with, is not written.
    assert (variant.to_peft(base, found) is None) == bool(seed)


WRITTEN = [
    (
        "adalora",
        {"rank": 3, "target_rank": 2, "alpha": 5.0, "dropout": 0.25, "mode": "reference"}
        | {"total_steps": 50, "t_init": 4, "t_final": 7, "delta_t": 3, "orthogonality": 0.3}
        | {"beta1": 0.7, "beta2": 0.9},
    ),
    ("boft", {"block_size": 4, "butterfly_factors": 1}),
    ("c3a", {"block_size": 2}),
    ("delora", {"rank": 3, "strength": 3.0, "dropout": 0.25}),
    ("dora", {"rank": 3, "alpha": 100.3, "dropout": 0.125}),
    ("gralora", {"rank": 8, "alpha": 100.3, "dropout": 0.25, "blocks": 4}),
    ("hira", {"rank": 3, "dropout": 0.25}),
    ("hra", {"rank": 3, "pairs": False}),
    ("ia3", {"scales": "inputs"}),
    ("ia3", {"scales": "outputs"}),
    ("loha", {"rank": 3, "alpha": 100.3}),
    ("lokr", {"rank": 1, "alpha": 100.3, "factor": 2, "decompose_both": True}),
    ("lora", {"rank": 3, "alpha": 100.3, "dropout": 0.25}),
    ("miss", {"rank": 3, "dropout": 0.25}),
    ("oft", {"block_size": 4}),
    ("oft", {"block_size": 2, "neumann_terms": 6}),
    ("road", {"per_pair": 4, "group_size": 4}),
    ("shira", {"rank": 1}),
]


@pytest.mark.parametrize(("name", "settings"), WRITTEN)
def test_what_is_written_is_read_as_the_same_method(name, settings):
    """Settings and weight; norms that a file holds are those that it was trained with."""
    random = np.random.default_rng(0)
    base = Base(jnp.asarray(random.standard_normal((8, 12)), jnp.float32), "io")
    variant = variants.make(name, **settings)
    trainable, constants = jax.jit(variant.init)(jax.random.key(0), base)
    moved = {n: jnp.asarray(random.standard_normal(x.shape), x.dtype) for n, x in trainable.items()}
    held = {n: 2 * x for n, x in constants.items() if n == "norms"}
    factors = Factors(moved, {**constants, **held})
    peft = variant.to_peft(base, factors)
    config = joined({"up": peft.settings})
    module = of_module(config, "up", compiled(config))
    shapes = {tensor: x.shape for tensor, x in peft.tensors.items()}
    again = variants.from_peft({**module, "tensor_shapes": shapes})
    for field, value in settings.items():
        rounded = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert getattr(again, field) == rounded, field
    begun = jax.jit(again.init)(jax.random.key(1), base)
    found = again.factors_from_peft(base, Peft(module, peft.tensors), begun)
    weights = jax.jit(lambda base: (again.weight(base, found), variant.weight(base, factors)))
    np.testing.assert_allclose(*weights(base), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("terms", [None, 3, 4, 5, 7])
def test_rotations_are_those_that_peft_makes_of_its_angles(terms):
    """Its `_cayley_batch` written out; the series turns the other way than the exact rotation."""
    random = np.random.default_rng(0)
    w, angles = random.standard_normal((8, 3)), 0.3 * random.standard_normal((2, 6))
    config = {"peft_type": "OFT", "oft_block_size": 4, "use_cayley_neumann": terms is not None}
    config |= {} if terms is None else {"num_cayley_neumann_terms": terms}
    q, (rows, columns) = np.zeros((2, 4, 4)), np.triu_indices(4, 1)
    q[:, rows, columns], q[:, columns, rows] = angles, -angles
    if terms is None:
        turns = (np.eye(4) - q) @ np.linalg.inv(np.eye(4) + q)
    else:
        last = max(terms, 4) - 1
        powers = [np.linalg.matrix_power(q, n) for n in range(1, last + 1)]
        turns = np.eye(4) + 2 * sum(powers[:-1]) + powers[-1]
    wanted = np.concatenate([turn @ part for turn, part in zip(turns, np.split(w, 2), strict=True)])
    variant, base = variants.from_peft(config), Base(jnp.asarray(w, jnp.float32), "io")
    begun = variant.init(jax.random.key(0), base)
    peft = Peft(config, {"oft_R.weight": angles.astype(np.float32)})
    factors = variant.factors_from_peft(base, peft, begun)
    np.testing.assert_allclose(jax.jit(variant.weight)(base, factors), wanted, atol=1e-5)
