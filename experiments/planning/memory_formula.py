"""Compute the memory of a decoder's training step: by formula, and as compiled.

All sizes are in bytes, on one device, without sharding or offloading. The formula takes a model
with N weights, of which n are in linear layers of shapes (in, out):

* weights: N times the bytes of their dtype. In NF4, each of the n weights takes 4 + 32 / 64 bits,
  or 4.127 bits if the scales are quantised too; the other weights stay as they are (Dettmers et
  al. 2023, arXiv:2305.14314, section 3);
* trained: all N weights in their dtype, or r (in + out) parameters in float32 for each matrix that
  an experiment adapts. Without an experiment, it is each linear layer of a block: an untied head,
  which "all-linear" also adapts and quantises, is not counted then. The gradients are as large, and
  AdamW's two moments twice as large (Kingma and Ba 2015, arXiv:1412.6980). Weights of 2 bytes have
  a copy of 4 bytes beside these, and moments of 4 bytes (`lora_jax.transform.adapted_optimizer`);
* temporaries: what the backward pass keeps of every layer, what one layer holds while it is
  computed, and the logits that exist at one time. This is an estimate: a compiler may need more or
  less.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

import variants
from configs.settings import TextConfig
from experiments.planning.abstract_step import batch_of
from experiments.planning.model_sizes import SIZES
from experiments.planning.topologies import GIB
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.setup.experiment import Experiment, build
from lora_jax.methods.lowrank import LowRank
from lora_jax.models.families.llama import LlamaConfig
from lora_jax.models.parts.config_checks import DecoderConfig
from lora_jax.sharding import memory
from lora_jax.transform.placement import AdaptedSpec, count_shared
from lora_jax.variant import Variant

BITS: dict[str, float] = {
    "nf4": 4 + 32 / 64,
    "nf4_double": 4 + 8 / 64 + 32 / (64 * 256),
    "int8": 8,
}
"""Bits of a quantised weight; the scales of int8, one for each column, are left out."""

GB = 10**9
CARDS = (16, 24, 40, 48, 80, 141)
"""Memory sizes of common accelerators in GB, as `topologies` takes them: 80 GB are 74.5 GiB."""
PARTS = ("weights", "trained", "gradients", "AdamW", "temporaries", "total")


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of a training step, in bytes."""

    weights: float
    """Weights that are not trained."""
    trained: float
    gradients: float
    optimizer: float
    temporaries: float
    """Temporaries other than the gradients."""

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a decoder is trained.

    `variant` adapts all linear layers, or what takes `adapters` numbers, if they are known; if it
    is None, all weights are trained. `width` is the number of bytes of a stored or computed number.
    `remat` recomputes each layer in the backward pass. Logits are computed for `predicted` tokens
    of a row, `chunk` tokens at a time.
    """

    variant: Variant | None
    storage: str = "none"
    width: int = 4
    batch: int = 1
    tokens: int = 512
    predicted: int = 512
    chunk: int = 128
    remat: bool = False
    adapters: int | None = None


def linears(config: LlamaConfig) -> list[tuple[int, int]]:
    """The shapes (in, out) of the linear layers in one block of a Llama-like decoder."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    return [
        (width, heads),
        (width, groups),
        (width, groups),
        (heads, width),
        (width, inner),
        (width, inner),
        (inner, width),
    ]


def weights(config: LlamaConfig) -> tuple[int, int]:
    """The number of weights in the linear layers of all blocks, and the number of all others."""
    in_blocks = config.num_hidden_layers * sum(a * b for a, b in linears(config))
    tables = 1 if config.tie_word_embeddings else 2
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    return in_blocks, tables * config.vocab_size * config.hidden_size + norms


def by_formula(config: DecoderConfig, setting: Setting) -> Memory:
    """The memory of a training step by formula, from sizes alone.

    Raises:
      ValueError: the decoder is not of the Llama family, or has biases.
    """
    if not isinstance(config, LlamaConfig) or config.biases.inputs or config.mlp_bias:
        raise ValueError("the formula is for decoders of Llama's family without biases")
    in_blocks, others = weights(config)
    if setting.variant is None:
        trained, stored = float(in_blocks + others), 0.0
    else:
        own = setting.adapters
        trained = float(_all_linear(config, setting.variant) if own is None else own)
        dense = 8 * setting.width
        stored = (in_blocks * BITS.get(setting.storage, dense) + others * dense) / 8
    width = setting.width if setting.variant is None else 4
    return Memory(
        weights=stored,
        trained=width * trained,
        gradients=width * trained,
        optimizer=(12 if width == 2 else 2 * width) * trained,
        temporaries=_temporaries(config, setting),
    )


def _all_linear(config: LlamaConfig, variant: Variant) -> int:
    """How many numbers a variant trains on all linear layers."""
    shapes = config.num_hidden_layers * linears(config)
    return sum(map(variant.count, shapes)) + count_shared(variant, shapes)


def _on_targets(spec: AdaptedSpec) -> int:
    """How many numbers the adapters of an experiment train, on its own targets."""
    shared = 0
    for variant, paths in spec.groups().items():
        shapes = [shape for each in spec.placed(paths) for shape in each.matrices]
        shared += count_shared(variant, shapes)
    return sum(each.count for each in spec.adapted) + shared


def _temporaries(config: LlamaConfig, setting: Setting) -> float:
    rows = setting.batch * setting.tokens
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    # A layer keeps: the inputs of attention and MLP, each plain and normalised; queries, keys,
    # values and the output of attention; the MLP's gate, its sigmoid and its activation, the other
    # half, and their product. The next line adds attention scores and probabilities.
    inside = rows * (4 * width + 2 * heads + 2 * groups + 5 * inner) * setting.width
    inside += 2 * setting.batch * config.num_attention_heads * setting.tokens**2 * 4
    kept = rows * width * setting.width if setting.remat else inside
    of_layers = config.num_hidden_layers * kept
    # The current layer also holds gradients of the same size, and with remat its own values.
    worked_on = 2 * inside if setting.remat else inside
    matrix = max(a * b for a, b in linears(config)) * setting.width
    dequantised = 0 if setting.storage == "none" or setting.variant is None else matrix
    chunk = setting.batch * min(setting.chunk, setting.predicted)
    logits = 2 * chunk * config.vocab_size * 4
    return of_layers + worked_on + dequantised + logits


def setting_of(experiment: Experiment) -> Setting:
    """How the decoder of an experiment is trained, with its longest batch."""
    config = experiment.config
    if not isinstance(config, TextConfig):
        raise ValueError(f"the formula is for language models, not for {config.model.name}")
    variant = variants.make(config.variant.name, **config.variant.settings)
    return Setting(
        variant=variant if variant.adapts else None,
        storage=config.quantize.storage,
        width=np.dtype(config.model.dtype).itemsize,
        batch=experiment.batch_size // config.train.accumulate,
        tokens=experiment.texts.longest,
        predicted=int(experiment.texts.encoded["train"].labels.max()),
        chunk=config.model.chunk,
        remat=bool(config.model.remat),
        adapters=_on_targets(experiment.frozen.spec) if variant.adapts else None,
    )


def as_compiled(experiment: Experiment) -> Memory:
    """The memory of an experiment's step: its arrays, and the temporaries of the compiled step.

    The compiler counts gradients among the temporaries. Here they are listed apart, with the size
    of the trained parameters.
    """
    state = jax.eval_shape(experiment.start)
    setting = setting_of(experiment)
    batch = batch_of(experiment.batch_size, setting.tokens)
    compiled = experiment.make_step().lower(state, experiment.separated, batch).compile()
    analysis: Any = compiled.memory_analysis()
    trained = memory.tree_bytes(state.trainable)
    return Memory(
        weights=memory.tree_bytes(experiment.frozen.base),
        trained=trained,
        gradients=trained,
        optimizer=memory.tree_bytes((state.opt_state, state.average)),
        temporaries=max(analysis.temp_size_in_bytes - trained, 0),
    )


# ---- tables --------------------------------------------------------------------------------------


def published_sizes(tokens: int) -> Table:
    """A table of published model sizes, with the smallest card that each method fits on."""
    made = Table("model", "method", *PARTS, "smallest card")
    settings = {
        "full": Setting(None, width=4, tokens=tokens, predicted=tokens, remat=True),
        "LoRA r=16": Setting(
            LowRank(rank=16), width=2, tokens=tokens, predicted=tokens, remat=True
        ),
        "QLoRA r=16": Setting(
            LowRank(rank=16), "nf4_double", 2, tokens=tokens, predicted=tokens, remat=True
        ),
    }
    for name, content in SIZES.items():
        config = LlamaConfig.from_json(content)
        for method, setting in settings.items():
            found = by_formula(config, setting)
            made.add_row(name, method, *_numbers(found, GIB), smallest_card(found))
    return made


def smallest_card(found: Memory) -> str:
    """The smallest of CARDS that a step fits on, with 5% of its memory to spare."""
    for size in CARDS:
        if found.total <= 0.95 * size * GB:
            return f"{size} GB"
    return f"none of {CARDS[-1]} GB"


def side_by_side(config: str, methods: Sequence[str]) -> Table:
    """A table of the memory of a config's methods, by formula and as compiled."""
    made = Table("method", "", *PARTS)
    for method in methods:
        separator = "," if ":" in config else ":"
        found = read_config([f"--config={config}{separator}method={method}"])
        experiment = build(parse(found.to_dict()))
        formula = by_formula(experiment.texts.shape, setting_of(experiment))
        made.add_row(method, "formula", *_numbers(formula, 2**20))
        made.add_row("", "compiled", *_numbers(as_compiled(experiment), 2**20))
        made.add_section()
    return made


def _numbers(found: Memory, unit: int) -> list[str]:
    digits = 1 if unit == GIB else 0
    values = (*dataclasses.astuple(found), found.total)
    return [f"{value / unit:,.{digits}f}" for value in values]
