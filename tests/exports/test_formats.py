"""Formats, their options, and what of a run they hold: its base, its head, plain LoRA or not."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import drawn
from fake_records import write
from flax import nnx
from make_fixtures import bert
from zoo.check import random_like

import lora_jax as lj
import variants
from configs.settings import ClassifierConfig, TextConfig
from experiments.exports import formats
from experiments.exports.base_and_head import without_head
from experiments.imports.combined_run import require_published_bases
from experiments.runs.finished_run import read_record
from lora_jax.models import families
from lora_jax.models.families.bert import BertConfig
from lora_jax.models.families.llama import LlamaConfig
from lora_jax.partition import flatten


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "mergd",
            {},
            "^--as=mergd: unknown format; nearest: 'merged'; the formats: gguf-lora, ",
        ),
        ("__init__", {}, "^--as=__init__: unknown format"),
        ("merged", {"rank": 3}, "^--rank is not a flag of --as=merged, .* are: --dtype, --shard_s"),
        ("loralib", {"dtype": "float32"}, "^--dtype is not a flag of --as=loralib, .* are: none$"),
        ("merged", {"dtype": "float8"}, "^--dtype=float8: unknown dtype; nearest: 'float"),
        ("merged", {"shard_size": "5"}, "^--shard_size=5: expected a size such as 5GB or 500MB$"),
        ("merged", {"shard_size": "0GB"}, "^--shard_size=0GB: expected a size"),
        ("merged", {"for": "vllm"}, "^--for is not a flag of --as=merged, "),
        ("peft", {"for": "vlm"}, "^--for=vlm: unknown loader; nearest: 'vllm'"),
        ("peft", {"loader": "vllm"}, "^--loader is not a flag .* are: --for, --svd_rank$"),
        ("peft", {"svd_rank": 3}, "^--svd_rank is for servers: --for=vllm or --for=sglang$"),
        ("gguf_lora", {}, "^--as=gguf_lora: unknown format; nearest: 'gguf-lora'"),
    ],
)
def test_a_format_or_an_option_that_there_is_not(name, options, said):
    with pytest.raises(ValueError, match=said):
        formats.make(name, options)


def test_runs_that_are_not_exported(tmp_path):
    def refused(folder, said, kind=ValueError):
        with pytest.raises(kind, match=said):
            read_record(tmp_path / folder)

    refused("gone", r"^--run=.*gone: no such folder$", FileNotFoundError)
    (tmp_path / "lora").mkdir()
    refused("lroa", r"lroa: no such folder; nearest in .*: 'lora'$", FileNotFoundError)
    refused("lroa/seed0", r"; there is no folder .*; nearest in .*: 'lora'$", FileNotFoundError)
    said = "^--run=.* is not the folder of a run: it has no config.json"
    refused("", f"{said}$")
    (tmp_path / "lora/config.json").write_text("{}")
    refused("lora", r"^--run=.*lora has not ended: it has no record.json; th")
    write(tmp_path / "lora", "quickstart", "", {"accuracy": None}, status="diverged")
    refused("lora", r"^--run=.*lora is not completed, but diverged")
    refused("", f"{said}; the runs in it: lora$")


LORA, DORA = (variants.make(name, rank=1) for name in ("lora", "dora"))
ON_NF4 = {"quantize": {"up/kernel": lj.NF4()}}
LOFTQ = {"variant": variants.make("lora", rank=1, initialization="loftq_iter_2"), **ON_NF4}
PARAMS = {
    "embedding": {"embedding": jnp.ones((5, 4))},
    "layers": {"up": {"kernel": jnp.ones((2, 4, 4))}},
    "norm": {"scale": jnp.ones(4)},
}


def forward(params, ids):
    x = params["embedding"]["embedding"][ids]
    for layer in range(2):
        x = x @ params["layers"]["up"]["kernel"][layer]
    return x * params["norm"]["scale"][None, None]


def run(variant=LORA, targets="up/kernel", kind=TextConfig, shape=None, **options):
    """A run of which formats know the kind, the shape and the adapter."""
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), PARAMS, jnp.zeros((1, 3), jnp.int32))
    made = {"config": object.__new__(kind), "shape": shape or LlamaConfig()}
    made |= {"folder": "runs/a", "source": None, "trainable": trainable, "frozen": frozen}
    return types.SimpleNamespace(**made)


MERGED = "--as=merged writes the model instead"


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        (
            "gguf-lora",
            {"targets": "embedding"},
            f"'embedding/embedding' is an embedding, .*: merge the weights.*; {MERGED}$",
        ),
        (
            "gguf-lora",
            {"also_train": "norm/scale"},
            f"'norm/scale' trains in full, .*: merge the weights.*; {MERGED}$",
        ),
        (
            "gguf-lora",
            {"variant": DORA},
            "'layers/up/kernel': DoRA is not a plain LoRA, .*, or give svd_rank; "
            f"{MERGED}, and --svd_rank=R cuts it to rank R and says the error$",
        ),
        (
            "gguf-lora",
            {"kind": ClassifierConfig, "shape": BertConfig()},
            "the run's model is a classifier .bert., .* --as=merged, or --as=peft --for=peft$",
        ),
        (
            "peft",
            LOFTQ,
            "LoftQ has quantised another matrix in the place of 'layers/up/kernel', .*: "
            "--as=merged$",
        ),
    ],
)
def test_what_a_format_does_not_hold(form, options, said, tmp_path, monkeypatch):
    """The library says why, and the command by which flags it can be written all the same."""
    monkeypatch.setattr(formats, "published", lambda run: "ada/base")
    monkeypatch.setattr(formats, "find_gguf", lambda source: None)
    with pytest.raises(ValueError, match=f"^--as={form}: {said}") as error:
        formats.make(form, {}).write(run(**options), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_runs_on_no_published_base_are_not_combined():
    said = (
        "^runs/a: LoftQ has quantised another matrix in the place of 'layers/up/kernel', so a "
        "run of LoRA .*: merge each run .*export --as=merged"
    )
    with pytest.raises(ValueError, match=said):
        require_published_bases([run(**ON_NF4), run(**LOFTQ)])


VERA = variants.make("vera", rank=3)
WAYS = {
    "adapted": {"targets": {"classifier/kernel": VERA, "query/kernel": LORA, "up/kernel": VERA}},
    "adapted alone": {"targets": {"classifier/kernel": VERA, "query/kernel": LORA}},
    "trained": {"targets": {"query/kernel": VERA}, "also_train": "(classifier|norm)/.*"},
    "quantised": {"targets": {"query/kernel": VERA}, "quantize": {"classifier/kernel": lj.NF4()}},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_and_the_head_are_the_whole(way):
    """VeRA's shared arrays are numbered by variant, and still found."""
    content = bert.CASES["bert"][0]
    family = families.family_of(content)
    config = family.config.from_json(content)
    model = drawn(lambda: family.model(config, num_labels=3, pool="cls", rngs=nnx.Rngs(0)))
    classify, params = lj.from_nnx(model)
    adapted = lj.adapt(classify, **WAYS[way])
    inputs = [each[:2] for each in bert.random_inputs(content, 0)]
    trainable, frozen = adapted.init(jax.random.key(0), params, *inputs)
    trainable = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
    whole, _ = flatten(adapted.merge(trainable, frozen))
    rest, bare, head = without_head(trainable, frozen)
    assert {path.partition("/")[0] for path in head} == {"classifier", "pooler"}
    assert not head.keys() & {*rest["params"], *rest["adapters"], *bare.base, *bare.constants}
    again = {**rest, "params": {**rest["params"], **head}}
    found, _ = flatten(adapted.merge(again, bare))
    assert found.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)
