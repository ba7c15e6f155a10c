"""LoRA beside Hugging Face PEFT, both running: random settings, then BERT and RoBERTa whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_fixtures.bert import random_inputs, random_tensors, save_checkpoint

import lora_jax as lj
from lora_jax.models.pretrained import load_classifier
from lora_jax.models.torch_names import to_torch_names, torch_names
from lora_jax.variant import Base
from variants.lora import LoRA

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from make_fixtures.bert import torch_random  # noqa: E402
from make_fixtures.peft_lora import run, run_net  # noqa: E402
from peft_net import assert_agrees, assert_trees_close, group, sgd, to_factors, variant_of  # noqa: E402

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


@pytest.mark.parametrize("seed", range(20))
def test_random_settings(seed, x64):
    random = np.random.RandomState(seed)
    config = random_settings(random)
    modules = random.permutation(MODULES)[: random.randint(1, 5)].tolist()
    config |= {"target_modules": modules}
    config["rank_pattern"] = {m: int(random.randint(1, 5)) for m in modules if random.randint(2)}
    config["alpha_pattern"] = {m: int(random.randint(1, 9)) for m in modules if random.randint(2)}
    assert_agrees(run_net(config, 50 + seed), config)


def random_bert(seed):
    """A small config of either family, two layers at least."""
    random = np.random.RandomState(2000 + seed)
    heads = int(random.randint(1, 4))
    return {
        "model_type": ["bert", "roberta"][seed % 2],
        "vocab_size": int(random.randint(20, 40)),
        "hidden_size": heads * int(random.randint(4, 7)),
        "num_hidden_layers": int(random.randint(2, 5)),
        "num_attention_heads": heads,
        "intermediate_size": int(random.randint(8, 20)),
        "max_position_embeddings": 24,
        "type_vocab_size": 2,
        "pad_token_id": int(random.randint(0, 3)),
    }


TARGETS = {
    "query and value": ["query", "value"],
    "feed forward": r".*(intermediate|layer\.\d+\.output)\.dense",
    "all linear": "all-linear",
    "embedding": ["word_embeddings", "key"],
}
OURS = {
    "query and value": ["layers/attention/(query|value)/kernel"],
    "feed forward": ["layers/(up|down)/kernel"],
    "all linear": ["layers/.*/kernel", "pooler/kernel"],
    "embedding": ["embeddings/word/embedding", "layers/attention/key/kernel"],
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("seed", range(2))
def test_whole_models(seed, targets, tmp_path, x64):
    """Logits, gradients and merged weights, and 20 steps of training; ranks differ by layer."""
    bert = random_bert(seed)
    family = bert["model_type"]
    theirs, shapes = torch_random(bert, 3, seed)
    save_checkpoint(tmp_path, bert, random_tensors(shapes, seed))
    options = {"num_labels": 3, "pool": "cls", "param_dtype": jnp.float64}
    ours = load_classifier(tmp_path, key=jax.random.key(0), **options).model
    function, params = lj.from_nnx(ours)

    settings = random_settings(np.random.RandomState(seed)) | {"r": 2}
    last = bert["num_hidden_layers"] - 1
    patterns = {"rank_pattern": {rf"layer\.{last}\..*": 3}, "alpha_pattern": {r"layer\.0\..*": 5}}
    config = {**settings, **patterns, "target_modules": TARGETS[targets]}
    # PEFT's own head is trained in full; here neither side trains it
    if targets == "all linear":
        config["exclude_modules"] = r".*(classifier|classifier\.(dense|out_proj))"

    ids, mask, types = random_inputs(bert, seed)
    labels = np.arange(len(ids)) % 3
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {n: torch.tensor(v).long() for n, v in zip(names, (ids, mask, types), strict=True)}
    entropy = torch.nn.CrossEntropyLoss()
    arrays = run(theirs, config, seed, inputs, lambda y: entropy(y, torch.tensor(labels)))

    paths = OURS[targets]
    if targets == "all linear" and family == "roberta":
        paths = paths[:1]  # its pooler is a part of the head
    rules = {}
    for path in paths:
        if path.startswith("layers"):
            for layer in range(last + 1):
                module = torch_names("layers/up/kernel", ours.config)[layer]
                variant = variant_of(config, module.removesuffix(".weight"))
                rules[lj.layers(path, layer)] = variant
        else:
            rules[path] = variant_of(config, path)
    adapted = lj.adapt(function, targets=rules)
    arguments = tuple(map(jnp.asarray, (ids, mask, types)))
    fresh, frozen = adapted.init(jax.random.key(0), params, *arguments)

    def ours_of(tensors):
        """PEFT's factors in our layout: layers stacked, ranks padded to the largest."""
        factors, adapters = to_factors(tensors), {}
        for path, mine in fresh["adapters"].items():
            each = [factors.pop(name) for name in torch_names(path, ours.config)]
            padded = {
                n: jnp.stack([jnp.zeros(f.shape[-2:]).at[: len(e[n])].set(e[n]) for e in each])
                for n, f in mine.items()
            }
            stacked = path.startswith("layers/")
            adapters[path] = padded if stacked else {n: f[0] for n, f in padded.items()}
        assert not factors, f"PEFT adapts {sorted(factors)} too"
        return {"adapters": adapters, "params": {}}

    trainable = ours_of(group(arrays, "param"))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(trainable):
        logits = adapted.apply(trainable, frozen, *arguments)
        log_p = jax.nn.log_softmax(logits)
        return -log_p[jnp.arange(len(labels)), jnp.asarray(labels)].mean(), logits

    (value, logits), gradient = step(trainable)
    np.testing.assert_allclose(logits, arrays["y"], atol=1e-11, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-11, rtol=0)
    expected = ours_of(group(arrays, "grad"))
    if targets == "embedding":  # torch never trains the row of the padding id
        pad = bert["pad_token_id"]
        for each in (gradient, expected):
            rows = each["adapters"]["embeddings/word/embedding"]
            rows["a"] = rows["a"].at[:, pad].set(0)
    assert_trees_close(gradient, expected, 1e-10)

    merged = to_torch_names(adapted.merge(trainable, frozen), ours.config)
    theirs_merged = group(arrays, "merged")
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, theirs_merged[name], atol=1e-12, rtol=0, err_msg=name)
    if targets != "embedding":
        trained = sgd(lambda trainable: step(trainable)[1], trainable)
        assert_trees_close(trained, ours_of(group(arrays, "trained")), 1e-10)


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
