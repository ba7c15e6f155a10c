"""Which runs can be plain LoRA, from their adapters alone."""

import types

import jax
import jax.numpy as jnp
import pytest

import lora_jax as lj
import variants
from configs.settings import TextConfig
from experiments.exports.plain_lora import refusals_of, require_plain, svd_lines
from lora_jax.models.families.llama_config import LlamaConfig

LORA, DORA = (variants.make(name, rank=1) for name in ("lora", "dora"))
LOFTQ = variants.make("lora", rank=1, initialization="loftq_iter_2")
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


def run(variant=LORA, targets="up/kernel", **options):
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), PARAMS, jnp.zeros((1, 3), jnp.int32))
    config = object.__new__(TextConfig)  # its kind is all that is looked at
    made = {"config": config, "shape": LlamaConfig(), "trainable": trainable, "frozen": frozen}
    return types.SimpleNamespace(**made)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": "embedding"}, "'embedding/embedding' is an embedding, .*; --as=merged$"),
        ({"also_train": "norm/scale"}, "'norm/scale' trains in full, .*; --as=merged$"),
        ({"variant": DORA}, "'layers/up/kernel': DoRA is no plain LoRA; .* --svd_rank=R, which"),
        (
            {"quantize": {"up/kernel": lj.NF4()}, "variant": LOFTQ},
            "LoftQ has quantised another matrix in the place of 'layers/up/kernel', .*: --as=merg",
        ),
    ],
)
def test_what_is_no_plain_lora(options, said):
    with pytest.raises(ValueError, match=said):
        require_plain(run(**options), None)


def test_what_is_plain_lora_or_is_cut_to_it():
    require_plain(run(), None)
    require_plain(run(DORA), 2)


def test_the_library_s_refusals_name_flags():
    for said, added in (("no", "; --as=merged writes the model instead"), ("no: --as=merged", "")):
        with (
            pytest.raises(ValueError, match=f"^--for=vllm: {said}{added}$"),
            refusals_of("--for=vllm"),
        ):
            raise ValueError(said)


def test_the_error_of_each_weight_is_in_a_table():
    lines = svd_lines({"model.layers.0.mlp.up_proj": 0.12345, "x": 0.0})
    assert [line.split() for line in lines[2:]] == [
        ["model.layers.0.mlp.up_proj", "12.35%"],
        ["x", "0.00%"],
    ]
    assert svd_lines({}) == []
