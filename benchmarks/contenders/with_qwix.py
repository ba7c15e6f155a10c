"""A training step of LoRA by Qwix, in the same encoder.

Qwix finds the weights of Flax's own linear layers while a model runs, and adds parameters to the
modules that it passes. So the encoder's layers stand one beside the other here, unstacked, and have
`nnx.Linear` in place of the project's own. The step is that of `hand`.
"""

from typing import Any

import jax
from flax import nnx
from jax import Array

import lora_jax as lj
from benchmarks import models
from benchmarks.cases import ALPHA, Case
from benchmarks.contenders.hand import autodiff_step
from benchmarks.contenders.made import Made, stepping
from lora_jax.models.parts.modules import Linear, attention_bias
from lora_jax.training.step import cross_entropy


class Unstacked(nnx.Module):
    """A BERT classifier over the first token, without dropout, as a list of layers."""

    def __init__(self, model: Any):
        graph, weights = nnx.split(model.layers)
        count = model.config.num_hidden_layers
        layers = [
            nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], weights)) for i in range(count)
        ]
        self.embeddings, self.pooler, self.classifier = (
            model.embeddings,
            model.pooler,
            model.classifier,
        )
        self.layers = nnx.List([with_flax_linears(layer) for layer in layers])

    def __call__(self, input_ids: Array, attention_mask: Array, token_type_ids: Array) -> Array:
        positions = jax.numpy.arange(input_ids.shape[1])[None]
        x = self.embeddings(input_ids, positions, token_type_ids, jax.numpy.float32)
        bias = attention_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias, rng=None)
        return self.classifier(jax.numpy.tanh(self.pooler(x[:, 0])))


def with_flax_linears(module: Any) -> Any:
    """The module with `nnx.Linear` in place of every `Linear` inside."""
    for name, child in list(vars(module).items()):
        if isinstance(child, Linear):
            flax = nnx.Linear(*child.kernel.shape, rngs=nnx.Rngs(0))
            flax.kernel, flax.bias = child.kernel, child.bias
            setattr(module, name, flax)
        elif isinstance(child, nnx.Module):
            with_flax_linears(child)
    return module


def step_work(case: Case) -> Made:
    """Make the step.

    Raises:
      ValueError: another method than LoRA in float32, or another model than an encoder.
    """
    import qwix  # pyright: ignore[reportMissingImports]

    if (case.method, case.storage, models.family(case)) != ("lora", "none", "bert"):
        raise ValueError(f"Qwix trains LoRA in an encoder here, not {case.method}, {case.model}")
    batch = models.batch(case)
    inputs = [batch[name] for name in models.INPUTS]
    names = "|".join(models.TARGETS[case.targets])
    rule = qwix.LoraProvider(module_path=f"layers/.*({names})", rank=case.rank, alpha=ALPHA)
    model = Unstacked(models.load(case))
    model = qwix.apply_lora_to_model(model, rule, *inputs, rngs=nnx.Rngs(0))
    forward, params = lj.from_nnx(model)
    mine: Any = nnx.Any(nnx.LoRAParam, nnx.PathContains("classifier"))
    return stepping(*autodiff_step(forward, params, cross_entropy, mine), batch)
