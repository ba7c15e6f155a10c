"""Which runs can be plain LoRA, from their adapters alone: what the library refuses, and flags."""

import types

import jax
import jax.numpy as jnp
import pytest

import lora_jax as lj
import variants
from configs.settings import TextConfig
from experiments.combining.combined_run import require_published_bases
from experiments.exports.plain_lora import refusals_of, require_for_servers, svd_lines
from lora_jax.interchange.names import names_of
from lora_jax.interchange.save_plain_lora import save_plain_lora
from lora_jax.models.families.llama import LlamaConfig

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
        ({"targets": "embedding"}, "'embedding/embedding' is an embedding, .*: merge the weights"),
        ({"also_train": "norm/scale"}, "'norm/scale' trains in full, .*: merge the weights"),
        ({"variant": DORA}, "'layers/up/kernel': DoRA is no plain LoRA, .*, or give svd_rank"),
    ],
)
def test_what_is_no_plain_lora(options, said, tmp_path):
    """The library says why, and the command by which flags it can be written all the same."""
    made = run(**options)
    with (
        pytest.raises(ValueError, match=rf"^--for=vllm: {said}.*--as=merged writes the model inst"),
        refusals_of("--for=vllm"),
    ):
        require_for_servers(made)
        given = made.trainable, made.frozen, names_of(made.shape)
        save_plain_lora(tmp_path / "out", *given, served=None)
    assert not (tmp_path / "out").exists()


def test_what_is_not_of_the_published_base():
    made = run(variant=LOFTQ, quantize={"up/kernel": lj.NF4()})
    said = "LoftQ has quantised another matrix in the place of 'layers/up/kernel', .*: --as=merged"
    with pytest.raises(ValueError, match=said):
        require_for_servers(made)
    made.folder = "runs/loftq"
    said = (
        "^runs/loftq: LoftQ has quantised another matrix in the place of 'layers/up/kernel', so a "
        "run of LoRA .*: merge each run .*export --as=merged"
    )
    with pytest.raises(ValueError, match=said):
        require_published_bases([run(quantize={"up/kernel": lj.NF4()}), made])


def test_the_library_s_refusals_name_flags():
    merged = "; --as=merged writes the model instead"
    cut = f"{merged}, and --svd_rank=R cuts it to rank R and says the error"
    for said, added in (("no", merged), ("no: --as=merged", ""), ("give svd_rank", cut)):
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
