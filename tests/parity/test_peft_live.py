"""LoRA beside Hugging Face PEFT, both running: random settings, then BERT and RoBERTa whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.variant import Base
from variants.lora import LoRA

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from make_fixtures.peft_lora import run, run_net  # noqa: E402
from peft_bert import (  # noqa: E402
    LAYER_KERNELS,
    assert_classifier_agrees,
    layer_patterns,
    random_bert,
)
from peft_net import assert_agrees  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

MODULES = ["embed", "conv", "l1", "l2"]


def random_settings(random):
    return {
        "r": int(random.randint(1, 5)),
        "lora_alpha": int(random.randint(1, 17)),
        "use_rslora": bool(random.randint(2)),
        "init_lora_weights": [True, "gaussian"][random.randint(2)],
    }


# Both scales and starts; each module, with and without a rank and an alpha of its own.
@pytest.mark.parametrize("seed", [0, 8, 10, 12, 13, 16])
def test_random_settings(seed, x64):
    random = np.random.RandomState(seed)
    config = random_settings(random)
    modules = random.permutation(MODULES)[: random.randint(1, 5)].tolist()
    config |= {"target_modules": modules}
    config["rank_pattern"] = {m: int(random.randint(1, 5)) for m in modules if random.randint(2)}
    config["alpha_pattern"] = {m: int(random.randint(1, 9)) for m in modules if random.randint(2)}
    assert_agrees(run_net(config, 50 + seed), config)


TARGETS = {
    "query and value": ["query", "value"],
    "feed forward": r".*(intermediate|layer\.\d+\.output)\.dense",
    "all linear": "all-linear",
    "embedding": ["word_embeddings", "key"],
}
OURS = {
    "query and value": ["layers/attention/query/kernel", "layers/attention/value/kernel"],
    "feed forward": ["layers/up/kernel", "layers/down/kernel"],
    "all linear": [*LAYER_KERNELS, "pooler/kernel"],
    "embedding": ["embeddings/word/embedding", "layers/attention/key/kernel"],
}


# 0's training makes 1e-10 of one rounding, not 1e-14
@pytest.mark.parametrize(
    ("seed", "targets"), [(1, "all linear"), *((2 - i % 2, each) for i, each in enumerate(TARGETS))]
)
def test_whole_models(seed, targets, tmp_path, x64):
    """Logits, gradients and merged weights, and 20 steps of training; ranks differ by layer."""
    bert = random_bert(seed)
    settings = random_settings(np.random.RandomState(seed)) | {"r": 2}
    config = {**settings, **layer_patterns(bert), "target_modules": TARGETS[targets]}
    paths = OURS[targets]
    # PEFT's own head is trained in full; here neither side trains it
    if targets == "all linear":
        config["exclude_modules"] = r".*(classifier|classifier\.(dense|out_proj))"
        if bert["model_type"] == "roberta":
            paths = LAYER_KERNELS  # its pooler is a part of the head
    assert_classifier_agrees(tmp_path, bert, config, paths, run, seed)


def test_an_embedding_starts_the_other_way_round():
    """The difference: PEFT starts an embedding's A at zero and draws its B, N(0, 1).

    Here every weight starts alike, with A drawn and B zero; at the start both change nothing.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"w": torch.nn.Embedding(50, 40)})
    config = peft.LoraConfig(r=8, target_modules=["w"])
    layer = peft.inject_adapter_in_model(config, model)["w"]
    a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    assert not a.any() and abs(float(b.std()) - 1) < 0.15
    ours = LoRA(rank=8).init(jax.random.key(0), Base(jnp.zeros((50, 40)), "io")).trainable
    assert ours["a"].any() and not ours["b"].any()
    assert ours["a"].shape == a.shape and ours["b"].shape == b.T.shape


def test_adapters_of_a_bfloat16_model_are_float32():
    model = torch.nn.ModuleDict({"w": torch.nn.Linear(20, 10)}).bfloat16()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["w"]))
    dtypes = {str(p.dtype) for n, p in wrapped.named_parameters() if "lora_" in n}
    ours = LoRA(rank=2).init(jax.random.key(0), Base(jnp.zeros((20, 10), jnp.bfloat16), "io"))
    assert dtypes == {"torch.float32"}
    assert {str(x.dtype) for x in ours.trainable.values()} == {"float32"}
