"""A whole classifier under PEFT, in torch, beside ours: layers one by one there, stacked here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from make_fixtures.bert import random_inputs, save_checkpoint, torch_random
from peft_net import (
    assert_trees_close,
    base_of,
    group,
    sgd,
    shared_of,
    slopes_of,
    to_factors,
    variant_of,
    with_constants,
)
from published_names import to_torch_names, torch_names

import lora_jax as lj
from lora_jax.models.published.load import load_classifier

LAYER_KERNELS = [
    *(f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
    "layers/up/kernel",
    "layers/down/kernel",
]


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


def layer_patterns(bert):
    """Another rank in the last layer, another alpha in the first."""
    last = bert["num_hidden_layers"] - 1
    return {"rank_pattern": {rf"layer\.{last}\..*": 3}, "alpha_pattern": {r"layer\.0\..*": 5}}


def targets_of(config, paths, bert):
    """What PEFT's config means for each of our weights, and for each layer of it."""
    rules = {}
    for path in paths:
        for layer, name in enumerate(torch_names(path, bert)):
            where = lj.layers(path, layer) if path.startswith("layers/") else path
            rules[where] = variant_of(config, name.removesuffix(".weight"))
    return rules


def stack_factors(tensors, like, bert):
    """PEFT's factors by tensor in our layout: layers stacked, ranks padded to the largest."""
    left, adapters = dict(tensors), {}
    for path, factors in like.items():
        each = [left.pop(name) for name in torch_names(path, bert)]
        stacked = path.startswith("layers/")
        adapters[path] = {}
        for name in set(factors) & set(each[0]):
            shape = factors[name].shape[stacked:]
            rows = [jnp.zeros(shape).at[: len(x[name])].set(x[name]) for x in each]
            adapters[path][name] = jnp.stack(rows) if stacked else rows[0]
    assert not left, f"PEFT adapts {sorted(left)} too"
    return adapters


def assert_classifier_agrees(folder, bert, config, paths, run, seed):
    """Logits, gradients, merged weights and 20 steps of training, the head frozen on both sides.

    Args:
      paths: our weights, those that PEFT's `target_modules` select.
      run: of `peft_lora` or `peft_methods`.
    """
    import torch

    theirs, shapes = torch_random(bert, 3, seed)
    ids, mask, types = random_inputs(bert, seed)
    labels = np.arange(len(ids)) % 3
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {n: torch.tensor(v).long() for n, v in zip(names, (ids, mask, types), strict=True)}
    entropy = torch.nn.CrossEntropyLoss()
    arrays = run(theirs, config, seed, inputs, lambda y: entropy(y, torch.tensor(labels)))

    save_checkpoint(folder, bert, {n: x for n, x in base_of(arrays, config).items() if n in shapes})
    options = {"num_labels": 3, "pool": "cls", "param_dtype": jnp.float64}
    ours = load_classifier(folder, key=jax.random.key(0), **options).model
    function, params = lj.from_nnx(ours)
    arguments = tuple(map(jnp.asarray, (ids, mask, types)))
    adapted = lj.adapt(function, targets=targets_of(config, paths, ours.config))
    fresh, frozen = jax.jit(adapted.init)(jax.random.key(0), params, *arguments)

    def ours_of(tensors):
        adapters = stack_factors(to_factors(tensors), fresh["adapters"], ours.config)
        return {"adapters": adapters, "params": {}, **shared_of(tensors)}

    start, fixed = group(arrays, "start"), group(arrays, "fixed")
    if any("lora_" in name for name in fixed):  # LoRA-FA's A
        like = {path: {"a": each["a"]} for path, each in frozen.constants.items()}
        fixed = stack_factors(to_factors(fixed), like, ours.config)
    frozen = with_constants(frozen, fixed, ours_of(start)["adapters"] if start else {})
    trainable = ours_of(group(arrays, "param"))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(trainable):
        logits = adapted.apply(trainable, frozen, *arguments)
        log_p = jax.nn.log_softmax(logits)
        return -log_p[jnp.arange(len(labels)), jnp.asarray(labels)].mean(), logits

    (value, logits), gradient = step(trainable)
    gradient = slopes_of(gradient, config)
    np.testing.assert_allclose(logits, arrays["y"], atol=1e-11, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-11, rtol=0)
    expected, word = ours_of(group(arrays, "grad")), "embeddings/word/embedding"
    if word in paths:  # torch never trains the row of the padding id
        for each in (gradient, expected):
            rows = each["adapters"][word]
            rows["a"] = rows["a"].at[:, bert["pad_token_id"]].set(0)
    assert_trees_close(gradient, expected, 1e-10)

    merged = to_torch_names(jax.jit(adapted.merge)(trainable, frozen), ours.config)
    theirs_merged = group(arrays, "merged")
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, theirs_merged[name], atol=1e-12, rtol=0, err_msg=name)
    if word not in paths:
        trained = sgd(lambda trainable: slopes_of(step(trainable)[1], config), trainable)
        assert_trees_close(trained, ours_of(group(arrays, "trained")), 1e-10)
