"""The settings of the papers' decoder tables, and the sizes of their models."""

import importlib

import jax
import pytest
from flax import nnx

from configs import common_texts, dora_table1, lora_table3, pissa_nlg, qlora_llama
from experiments.analysis import published
from experiments.planning import model_sizes
from lora_jax.data.sources import commonsense
from lora_jax.models import families
from lora_jax.models.published.load import abstract_decoder

CONTENTS = {
    name: model_sizes.ON_THE_HUB[on_the_hub]
    for name, on_the_hub in common_texts.MODELS.items()
    if name != "smollm2"  # which is installed
}


def test_every_model_s_size_is_known():
    for name in CONTENTS.keys() - {"llama_2_13b", "llama_2_70b", "llama_3_70b"}:  # in no table
        family = families.family_of(CONTENTS[name])
        decoder = abstract_decoder(family.config.from_json(CONTENTS[name]))
        total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder)))
        assert published.SIZES[name] == pytest.approx(total, rel=1e-4), name


def test_what_no_size_shows_is_as_published():
    for size in ("8b", "70b"):
        assert CONTENTS[f"llama_3_{size}"]["rope_theta"] == 500_000
    assert CONTENTS["mistral_7b"]["sliding_window"] == 4096
    heads = {name: content.get("num_attention_heads") for name, content in CONTENTS.items()}
    assert {name: heads[name] for name in ("llama_7b", "llama_13b", "llama_2_70b")} == {
        "llama_7b": 32,
        "llama_13b": 40,
        "llama_2_70b": 64,
    }


@pytest.mark.parametrize(
    ("model", "method", "percent"),
    [
        # Table 1; its 0.35 for half the rank with LLaMA 3 leaves the magnitudes out (0.36)
        ("llama_7b", "lora", 0.83),
        ("llama_7b", "dora_half", 0.43),
        ("llama_7b", "dora", 0.84),
        ("llama_13b", "lora", 0.67),
        ("llama_13b", "dora_half", 0.35),
        ("llama_13b", "dora", 0.68),
        ("llama_3_8b", "lora", 0.70),
        ("llama_3_8b", "dora", 0.71),
    ],
)
def test_dora_s_ranks_and_targets_train_the_printed_share(model, method, percent):
    content = CONTENTS[model]
    width, inner = content["hidden_size"], content["intermediate_size"]
    small = width * content["num_key_value_heads"] // content["num_attention_heads"]
    matrices = [(width, width), (width, small), (width, small), (width, inner), (inner, width)]
    rank = dora_table1.SETTINGS[model, method][0]
    trained = sum(rank * (a + b) + (b if "dora" in method else 0) for a, b in matrices)
    trained *= content["num_hidden_layers"]
    assert round(100 * trained / (published.SIZES[model] + trained), 2) == percent


@pytest.mark.parametrize(
    ("name", "arg", "expected"),
    [
        # batch, epochs, rate, schedule, warm-up (steps, ratio), decay, rank, alpha, dropout
        (
            "lora_table3",
            "model=gpt2_medium",
            (8, 5, 2e-4, "linear", 500, 0.0, 0.01, 4, 32.0, 0.1),
        ),
        ("lora_table3", "model=gpt2_large", (8, 5, 2e-4, "linear", 500, 0.0, 0.01, 4, 32.0, 0.1)),
        (
            "dora_table1",
            "model=llama_7b,method=dora",
            (16, 3, 1e-4, "linear", 100, 0.0, 0.0, 32, 64.0, 0.05),
        ),
        (
            "dora_table1",
            "model=llama_13b,method=dora_half",
            (16, 3, 3e-4, "linear", 100, 0.0, 0.0, 16, 32.0, 0.05),
        ),
        (
            "dora_table1",
            "model=llama_3_8b,method=lora",
            (16, 3, 3e-4, "linear", 100, 0.0, 0.0, 32, 64.0, 0.05),
        ),
        (
            "pissa_nlg",
            "model=mistral_7b,method=pissa",
            (128, 1, 2e-5, "cosine", 0, 0.03, 0.0, 128, 128.0, None),
        ),
        (
            "qlora_llama",
            "model=llama_13b,method=lora_nf4_double",
            (16, 4, 2e-4, "constant", 0, 0.0, 0.0, 64, 16.0, 0.1),
        ),
    ],
)
def test_hyperparameters_are_the_papers(name, arg, expected):
    c = importlib.import_module(f"configs.{name}").get_config(arg).to_dict()
    optimizer, variant = c["optimizer"], c["variant"]
    found = (c["train"]["batch_size"], c["train"]["epochs"])
    found += tuple(optimizer[key] for key in ("learning_rate", "schedule", "warmup_steps"))
    found += tuple(optimizer[key] for key in ("warmup_ratio", "weight_decay"))
    assert found + tuple(map(variant.get, ("rank", "alpha", "dropout"))) == expected
    assert c["model"]["dropout"] is False


def test_what_single_papers_ask_for():
    lora = lora_table3.get_config("model=gpt2_large").to_dict()
    assert lora["train"]["label_smoothing"] == 0.1 and lora["train"]["select"] == "best"
    wanted = {"beams": 10, "length_penalty": 0.9, "no_repeat_ngram": 4, "prompt_ngrams": False}
    wanted |= {"max_new_tokens": 64, "part": "extra", "scored": -1}
    assert {key: lora["generate"][key] for key in wanted} == wanted
    assert lora["targets"] == ("attention/(query|value)/kernel",)
    dora = dora_table1.get_config("model=llama_2_7b,method=dora").to_dict()
    wanted = {"beams": 4, "max_new_tokens": 32, "metrics": ("accuracy_written",), "part": "extra"}
    assert {key: dora["generate"][key] for key in wanted} == wanted
    assert (dora["data"]["name"], dora["data"]["max_length"]) == ("commonsense_170k", 256)
    pissa = {m: pissa_nlg.get_config(f"model=llama_2_7b,method={m}") for m in ("pissa", "full")}
    assert pissa["pissa"].variant.initialization == "pissa_niter_16"
    assert (pissa["pissa"].model.dtype, pissa["full"].model.dtype) == ("float32", "bfloat16")
    assert (pissa["pissa"].data.train, pissa["pissa"].data.max_length) == (100_000, 512)
    storages = {
        m: qlora_llama.get_config(f"method={m}").quantize.storage
        for m in qlora_llama.ARGUMENTS["method"]
    }
    assert list(storages.values()) == ["none", "int8", "nf4", "nf4_double"]
    qlora = qlora_llama.get_config("model=llama_7b")
    assert (qlora.train.max_steps, qlora.optimizer.clip) == (10_000, 0.3)
    assert lora["data"]["max_length"] == qlora.data.max_length == 512
    assert tuple(common_texts.COMMONSENSE) == commonsense.SETS
