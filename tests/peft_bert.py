"""A whole classifier under PEFT, in torch, beside ours: layers one by one there, stacked here."""

import jax
import jax.numpy as jnp
import numpy as np
from make_fixtures.bert import random_inputs, random_tensors, save_checkpoint, torch_random
from peft_net import (
    assert_trees_close,
    base_of,
    group,
    sgd,
    stepper,
    to_factors,
    variant_of,
    with_constants,
)

import lora_jax as lj
from lora_jax.models.pretrained import load_classifier
from lora_jax.models.torch_names import to_torch_names, torch_names


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
    """Rules for our paths: what PEFT's config means for each layer of each."""
    rules = {}
    for path in paths:
        names = torch_names(path, bert)
        variants = [variant_of(config, name.removesuffix(".weight")) for name in names]
        if path.startswith("layers/"):
            rules |= {lj.layers(path, layer): variant for layer, variant in enumerate(variants)}
        else:
            rules[path] = variants[0]
    return rules


def stack_factors(factors, like, bert):
    """PEFT's factors by tensor in our layout: layers stacked, ranks padded to the largest."""
    factors, adapters = dict(factors), {}
    for path, mine in like.items():
        each = [factors.pop(name) for name in torch_names(path, bert)]
        stacked = path.startswith("layers/")

        def padded(name, shape, each=each):
            return jnp.stack([jnp.zeros(shape).at[: len(e[name])].set(e[name]) for e in each])

        adapters[path] = {
            n: padded(n, f.shape[1:]) if stacked else padded(n, f.shape)[0]
            for n, f in mine.items()
            if n in each[0]
        }
    assert not factors, f"PEFT adapts {sorted(factors)} too"
    return adapters


def assert_classifier_agrees(folder, bert, config, paths, run, seed, zero_biases=""):
    """Logits, gradients, merged weights and 20 steps of training, the head frozen on both sides.

    Args:
      paths: patterns of our weights, the same as PEFT's `target_modules`.
      run: of `peft_lora` or `peft_methods`.
      zero_biases: the end of the names of biases to be zero.
    """
    import torch

    theirs, shapes = torch_random(bert, 3, seed)
    if zero_biases:
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.endswith(zero_biases):
                    parameter.zero_()
    ids, mask, types = random_inputs(bert, seed)
    labels = np.arange(len(ids)) % 3
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {n: torch.tensor(v).long() for n, v in zip(names, (ids, mask, types), strict=True)}
    entropy = torch.nn.CrossEntropyLoss()
    arrays = run(theirs, config, seed, inputs, lambda y: entropy(y, torch.tensor(labels)))

    save_checkpoint(folder, bert, base_of(arrays, config))
    options = {"num_labels": 3, "pool": "cls", "param_dtype": jnp.float64}
    ours = load_classifier(folder, key=jax.random.key(0), **options).model
    function, params = lj.from_nnx(ours)
    shape, arguments = ours.config, tuple(map(jnp.asarray, (ids, mask, types)))
    uses = lj.discover(function, params, *arguments)
    selected = [path for path in uses if any(re.fullmatch(each, path) for each in paths)]
    adapted = lj.adapt(function, targets=targets_of(config, selected, shape))
    fresh, frozen = jax.jit(adapted.init)(jax.random.key(0), params, *arguments)
    frozen = with_constants(frozen, group(arrays, "fixed"), group(arrays, "start"), stack)

    def ours_of(tensors):
        adapters = stack_factors(to_factors(tensors), fresh["adapters"], shape)
        return {"adapters": adapters, "params": {}}
