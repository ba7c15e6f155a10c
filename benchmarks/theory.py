"""The floating point operations and bytes of a training step of a Llama, by formula.

A product of a (T, in) and an (in, out) matrix takes 2 T in out operations. LoRA's backward pass
multiplies by each frozen matrix once more, for the gradient of its input; only full fine-tuning
multiplies a third time, for the gradient of the matrix. Causal attention is counted whole; on CPUs,
up to three eighths of it are left out. If logits are more than a chunk, the output layer is
computed twice in the forward direction (`token_losses`).
"""

import jax.numpy as jnp

import variants
from benchmarks import models
from benchmarks.cases import Case
from experiments.planning.memory_formula import Memory, Setting, by_formula, linears
from lora_jax.models.families.llama import LlamaConfig


def step_flops(case: Case, recomputed: bool = True) -> float:
    """The operations of a training step, of all trials.

    Args:
      recomputed: whether what the backward pass computes again is counted.
    """
    config, tokens = _config(case), case.rows * case.tokens
    layers = config.num_hidden_layers
    passes = 3 if case.method == "full" else 2
    again = 1 if case.remat and recomputed else 0
    in_blocks = 2 * tokens * layers * sum(a * b for a, b in linears(config)) * (passes + again)
    heads = config.num_attention_heads * config.head_dim
    # Scores and their product with the values: two products forwards, four backwards.
    attention = 4 * tokens * case.tokens * heads * layers * (3 + again)
    chunked = recomputed and case.tokens > Setting.chunk
    head = 2 * tokens * config.hidden_size * config.vocab_size * (passes + chunked)
    return case.trials * float(in_blocks + attention + head + _low_rank(case, config, tokens))


def step_bytes(case: Case) -> float:
    """The bytes of a training step's arrays and temporaries, of all trials over one base."""
    variant = None if case.method == "full" else variants.make("lora", rank=case.rank)
    setting = Setting(
        variant,
        storage=case.storage,
        width=jnp.dtype(case.dtype).itemsize,
        batch=case.rows,
        tokens=case.tokens,
        predicted=case.tokens,
        remat=case.remat,
    )
    config = _config(case)
    memory: Memory = by_formula(config, setting)
    own = memory.total - memory.weights - _not_adapted(case, config)
    return memory.weights + case.trials * own


def _not_adapted(case: Case, config: LlamaConfig) -> float:
    """What `by_formula`, which adapts all linear layers, counts too much.

    Two values are kept only for the gradient of an adapter: the normalised input of the MLP, and
    the product of its two halves. An adapter's numbers have gradients and two moments, in float32.
    """
    if case.method == "full":
        return 0.0
    adapted, layers = set(models.TARGETS[case.targets]), config.num_hidden_layers
    normalised, product = adapted.isdisjoint({"gate", "up"}), "down" not in adapted
    values = config.hidden_size * normalised + config.intermediate_size * product
    kept_layers = 1 if case.remat else layers  # the layer that is computed again, or all
    kept = kept_layers * case.rows * case.tokens * values * jnp.dtype(case.dtype).itemsize
    numbers = {t: sum(map(sum, _shapes(t, config))) for t in ("all", case.targets)}
    trained = case.rank * layers * (numbers["all"] - numbers[case.targets])
    return float(kept + 4 * 4 * trained)


def _low_rank(case: Case, config: LlamaConfig, tokens: int) -> float:
    """The operations of the adapters: two products forwards, four backwards."""
    if case.method == "full":
        return 0.0
    per_token = 6 * case.rank * sum(a + b for a, b in _shapes(case.targets, config))
    return float(tokens * config.num_hidden_layers * per_token)


def _shapes(targets: str, config: LlamaConfig) -> list[tuple[int, int]]:
    """The shapes of a block's adapted linear layers."""
    named = zip(models.TARGETS["all"], linears(config), strict=True)
    return [shape for name, shape in named if name in models.TARGETS[targets]]


def _config(case: Case) -> LlamaConfig:
    config = models.config(case)
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"{case.model} is not a Llama")
    return config
