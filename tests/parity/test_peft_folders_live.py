"""PEFT's folders in both directions, PEFT running: what one side writes, the other computes."""

import functools

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft_folders import MODELS, Pair, moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By name of a family."""

    @functools.cache
    def make(name):
        return Pair(MODELS[name], tmp_path_factory.mktemp(name))

    return make


@pytest.fixture
def pair(made, x64):
    return made("bert")


def assert_close(got, expected, base, rounded=1e-10):
    np.testing.assert_allclose(got, expected, atol=rounded, rtol=0)
    assert np.abs(expected - base).max() > 1e-3  # the adapter matters


# file's name -> settings of a variant that PEFT has too
METHODS = {
    "adalora": {"rank": 3, "target_rank": 2},
    "boft": {"block_size": 2, "butterfly_factors": 1},  # PEFT needs CUDA for more
    "c3a": {"block_size": 4},
    "delora": {"rank": 2},
    "dora": {"rank": 2, "initialization": "pissa"},
    "gralora": {"rank": 2},
    "hira": {"rank": 2},
    "hra": {"rank": 2},
    "ia3": {"biases": True},
    "loha": {"rank": 2},
    "lokr": {"rank": 1},
    "lora": {"rank": 2, "max_rank": 3},
    "lora_fa": {"rank": 2},
    "lora_xs": {"rank": 2},
    "miss": {"rank": 3},
    "oft": {"block_size": 4},
    "olora": {"rank": 2},
    "pissa": {"rank": 2},
    "randlora": {"rank": 3},
    "road": {"group_size": 4, "biases": True},
    "shira": {"rank": 1},
    "vblora": {"rank": 2, "num_vectors": 6, "vector_length": 4},
    "vera": {"rank": 4},
}


@pytest.mark.parametrize("method", METHODS)
def test_peft_computes_what_we_write(method, pair, tmp_path):
    variant = variants.make(method, **METHODS[method])
    adapted = lj.adapt(pair.forward, variant, "(query|up|down)/kernel")
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path / "out", trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path / "out"), expected, pair.plain())
    again, _ = pair.ours_from(tmp_path / "out")
    np.testing.assert_allclose(again, expected, atol=1e-12, rtol=0)


_DECODER = "layers/(attention/.*|up)/kernel"
# a model and a method, our targets, and what they are in torch
FAMILIES = {
    ("roberta", "dora"): ("(output|down)/kernel", r".*\.output\.dense"),
    ("deberta_v2", "rslora"): ("(key|down)/kernel", r".*(key_proj|\d\.output\.dense)"),
    ("deberta_v3", "lora"): ("(query|value)/kernel", ["query_proj", "value_proj"]),
    ("llama", "lora"): (_DECODER, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]),
    ("mistral", "rslora"): ("(key|output|gate)/kernel", ["k_proj", "o_proj", "gate_proj"]),
    ("qwen2", "lora"): ("(query|down)/kernel", ["q_proj", "down_proj"]),
    ("qwen3", "dora"): ("layers/.*/(query|value)/kernel", ["q_proj", "v_proj"]),
    ("gpt2", "lora"): (_DECODER, ["c_attn", "c_fc", "attn.c_proj"]),
    ("gpt2", "dora"): (_DECODER, ["c_attn", "c_fc", "attn.c_proj"]),
}


@pytest.mark.parametrize(("family", "method"), FAMILIES)
def test_families(family, method, made, tmp_path, x64):
    """Both directions, with ranks and alphas of single modules.

    GPT-2 has queries, keys and values in one weight.
    """
    pair, (ours, modules) = made(family), FAMILIES[family, method]
    first = variants.make(method, rank=2)
    others = variants.make(method, rank=3, alpha=5.0)
    targets = {lj.layers(ours, 0): first, lj.layers(ours, slice(1, None)): others}
    adapted = lj.adapt(pair.forward, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path / "ours", trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path / "ours"), expected, pair.plain())
    config = {
        **{"peft_type": "LORA", "target_modules": modules, "r": 2, "lora_alpha": 3},
        **{"use_dora": method == "dora", "use_rslora": method == "rslora"},
        "rank_pattern": {r"(layers?|h)\.1\..*": 3},
        "alpha_pattern": {r"(layers?|h)\.0\..*": 7},
    }
    expected = pair.written_by_peft(tmp_path / "theirs", config)
    got, loaded = pair.ours_from(tmp_path / "theirs")
    assert_close(got, expected, pair.plain())
    # and again: written from what was read
    lj.save_peft(tmp_path / "again", *loaded[1:3], pair.names)
    assert_close(pair.loaded_by_peft(tmp_path / "again"), expected, pair.plain())


# the matrices have 8 inputs or outputs; ranks may be larger
CONFIGS = {
    "LORA, patterns": {
        **{"peft_type": "LORA", "r": 2, "use_rslora": True, "lora_alpha": 3},
        **{"rank_pattern": {r"layer\.1\..*query": 9}, "alpha_pattern": {"query": 7}},
    },
    "ADALORA": {"init_r": 3, "target_r": 2, "total_step": 100, "tinit": 1, "tfinal": 1},
    "BOFT": {"boft_block_size": 2, "boft_n_butterfly_factor": 1},
    "C3A": {"block_size": 4},
    "DELORA": {"r": 9},
    "FOURIERFT": {"n_frequency": 5, "scaling": 200.0, "random_loc_seed": 11},
    "GRALORA": {"r": 2, "alpha": 3, "gralora_k": 2},
    "HIRA": {"r": 2},
    "HRA": {"r": 10},
    "IA3": {"feedforward_modules": ["intermediate.dense"]},
    "LOHA": {"r": 2, "alpha": 3},
    "LOKR": {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 2},
    "MISS": {"r": 3},
    "OFT": {"oft_block_size": 4, "use_cayley_neumann": False},
    "OFT, PEFT's usual": {"oft_block_size": 4},
    "OFT, number of blocks": {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 3},
    "OFT, nearest number": {"r": 3, "oft_block_size": 0},
    "OFT, nearest size": {"oft_block_size": 7},
    "BOFT, without CUDA": {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
    "BOFT, number of blocks": {"boft_block_size": 0, "boft_block_num": 2},
    "RANDLORA": {"r": 3, "randlora_alpha": 2},
    "ROAD": {"variant": "road_2", "group_size": 4},
    "SHIRA": {"r": 1},
    "VBLORA": {"r": 2, "num_vectors": 6, "vector_length": 4, "topk": 3},
    "VERA": {"r": 4},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_we_compute_what_peft_writes(case, pair, tmp_path):
    modules = r".*(query|intermediate\.dense|\d\.output\.dense)"
    kind = case.partition(",")[0]
    config = {"peft_type": kind, "target_modules": modules, **CONFIGS[case]}
    expected = pair.written_by_peft(tmp_path / "out", config)
    got, _ = pair.ours_from(tmp_path / "out")
    rounded = 1e-4 if case == "FOURIERFT" else 1e-10  # PEFT transforms in float32
    assert_close(got, expected, pair.plain(), rounded)


# a model, PEFT's config, and our patterns of what is written, with its variant and what trains
BESIDE = {
    "head": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "biases": ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "norms": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "lora_bias": ("bert", {"target_modules": ["query"], "lora_bias": True}),
    "embedding": ("bert", {"target_modules": ["word_embeddings", "value"]}),
    "embedding, DoRA": ("bert", {"target_modules": ["word_embeddings"], "use_dora": True}),
    "embedding, HiRA": ("bert", {"target_modules": ["word_embeddings"], "peft_type": "HIRA"}),
    "tokens": (
        "bert",
        {
            **{"peft_type": "TRAINABLE_TOKENS", "target_modules": ["word_embeddings"]},
            "token_indices": [3, 7, 0],
        },
    ),
    "tokens of a tied table": (
        "gpt2",
        {"peft_type": "TRAINABLE_TOKENS", "target_modules": ["wte"], "token_indices": [3, 7]},
    ),
    "tokens beside LoRA": (
        "llama_tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7]}},
    ),
    "joined biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "parameters": (
        "llama",
        {
            **{"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]},
            "alpha_pattern": {"up_proj": 30, "mlp.up_proj.weight": 7},
        },
    ),
    "an expression": (
        "llama",
        {
            **{"target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*0.*v_proj"},
            **{"use_rslora": True, "rank_pattern": {"^model.layers.0.*": 3}},
            "modules_to_save": ["lm_head"],
        },
    ),
    "some layers": ("llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
    "PiSSA": ("bert", {"target_modules": ["query"], "init_lora_weights": "pissa"}),
    "OLoRA": ("bert", {"target_modules": ["query"], "init_lora_weights": "olora"}),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_beside_the_matrices(case, made, tmp_path, x64):
    """Read from PEFT, written again, and read by PEFT."""
    family, config = BESIDE[case]
    pair = made(family)
    config = config if "peft_type" in config else {"peft_type": "LORA", **config}
    config = {"r": 2, **config} if config["peft_type"] != "TRAINABLE_TOKENS" else config
    pickled = {"safe_serialization": False} if case == "some layers" else {}
    expected = pair.written_by_peft(tmp_path / "theirs", config, **pickled)
    got, loaded = pair.ours_from(tmp_path / "theirs")
    rounded = 1e-5 if case in ("PiSSA", "OLoRA") else 1e-10  # PEFT rounds the residual
    np.testing.assert_allclose(got, expected, atol=rounded, rtol=0)
    assert np.abs(expected - pair.plain()).max() > 1e-3
    lj.save_peft(tmp_path / "ours", *loaded[1:3], pair.names)
    np.testing.assert_allclose(pair.loaded_by_peft(tmp_path / "ours"), got, atol=1e-10, rtol=0)


def test_an_adapter_that_does_nothing_in_peft(made, tmp_path, x64):
    """DeBERTa reads the weight of its table of distances past PEFT's wrapper."""
    pair = made("deberta_v3")
    config = {"peft_type": "LORA", "target_modules": ["rel_embeddings"], "r": 2}
    computed = pair.written_by_peft(tmp_path / "theirs", config)
    np.testing.assert_allclose(computed, pair.plain(), atol=1e-10, rtol=0)
    said = "adapter of 'deberta.encoder.rel_embeddings' does nothing in PEFT"
    with pytest.raises(ValueError, match=said):
        pair.ours_from(tmp_path / "theirs")
    targets = {"embeddings/relative/embedding": variants.make("lora", rank=2)}
    adapted = lj.adapt(pair.forward, targets=targets)
    begun = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    with pytest.raises(ValueError, match=said):
        lj.save_peft(tmp_path / "ours", *begun, pair.names)
    assert not (tmp_path / "ours").exists()
    tokens = {"trainable_token_indices": {"rel_embeddings": [3, 7]}}  # of another wrapper
    beside = {**config, "target_modules": ["query_proj"], **tokens}
    expected = pair.written_by_peft(tmp_path / "tokens", beside)
    assert_close(pair.ours_from(tmp_path / "tokens")[0], expected, pair.plain())


def test_files_in_float32(pair, tmp_path):
    adapted = lj.adapt(pair.forward, variants.make("dora", rank=2), "(query|up|down)/kernel")
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path, trainable, frozen, pair.names, dtype=np.float32)
    expected = pair.outputs(adapted, trainable, frozen)
    np.testing.assert_allclose(pair.loaded_by_peft(tmp_path), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(pair.ours_from(tmp_path)[0], expected, atol=1e-5, rtol=0)


def test_peft_computes_plain_lora_alike(made, tmp_path, x64):
    pair = made("llama")
    targets = {
        lj.layers(_DECODER, 0): variants.make("rslora", rank=1),
        lj.layers(_DECODER, 1): variants.make("rslora", rank=3),
    }
    adapted = lj.adapt(pair.forward, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    written = lj.save_plain_lora(tmp_path, trainable, frozen, pair.names)
    assert written.rank == 3 and written.max_lora_rank == 8
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path), expected, pair.plain())


def test_a_head_that_peft_saves_too(pair, tmp_path):
    adapted = lj.adapt(
        pair.forward,
        variants.make("lora", rank=2),
        "query/kernel",
        also_train="classifier/(kernel|bias)",
    )
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path, trainable, frozen, pair.names, task_type="SEQ_CLS")
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path), expected, pair.plain())
