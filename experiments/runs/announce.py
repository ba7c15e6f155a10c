"""What a run says before it trains: the memory that it will take, and its examples."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from configs.settings import ExampleSettings, OwnConfig, RunConfig, TextConfig, TokenSettings
from experiments.planning.abstract_step import AbstractStep, Batches, least, stays
from experiments.setup.load import read_texts
from experiments.setup.out_of_memory import advice, asked, check_ids
from lora_jax import data
from lora_jax.data.sources import is_generated
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.messages import agree
from lora_jax.sharding import memory
from lora_jax.transform.placement import Frozen
from lora_jax.transform.target_patterns import WITHOUT_PRODUCT

SMALLEST = 2**20 // 20
"""The bytes from which on a size is not written as 0.0 MiB."""
FEWER = "fewer trials at a time (--per_job; with --search, --per_round or fewer --trials)"


class TooManyTrialsError(ValueError):
    """Trials do not fit into memory together; fewer of them may. Nothing has been trained."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of a run's arrays, without gradients and the temporaries of a batch."""

    weights: int
    """The loaded weights, in the dtype of the config's `model`, and their quantised copies."""
    trained: int
    """The trained parameters, with the constants of adapters.

    Adapters count twice, as training works on a copy. Weights that train in full count once, as the
    copy replaces the loaded ones.
    """
    optimizer: int
    saved: int
    """The copies of the training state that are written while training goes on.

    Where the best evaluation's adapter is saved, what is kept of its state counts twice: it is
    written with each of these copies, too.
    """
    merged: int = 0
    """The weights with merged adapters, with which a language model generates at the end."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def of_trials(self, count: int) -> "Held":
        """The arrays of so many such runs, on one copy of the weights."""
        own = {name: count * getattr(self, name) for name in ("trained", "optimizer", "saved")}
        return dataclasses.replace(self, **own)

    @classmethod
    def of(cls, step: AbstractStep) -> "Held":
        """The arrays of a config's run."""
        state, frozen = step.state, step.frozen
        quantised = [each for each in frozen.base.values() if not hasattr(each, "dtype")]
        copied = {part: each for part, each in state.trainable.items() if part != "params"}
        own = state.trainable, copied, frozen.constants, frozen.shared
        writes = isinstance(step.config, TextConfig) and step.config.generate.writes
        kept = state.trainable, state.variant_state, state.step, state.rng
        times = 2 if step.config.train.select == "best" else 0
        return cls(
            saved=memory.tree_bytes(state) + times * memory.tree_bytes(kept),
            weights=memory.tree_bytes((step.params, quantised)),
            trained=memory.tree_bytes(own),
            optimizer=memory.tree_bytes((state.opt_state, state.variant_state, state.average)),
            merged=memory.tree_bytes(step.params) if writes else 0,
        )


def announce(
    config: RunConfig,
    say: Callable[[str], None],
    mesh: Mesh | None = None,
    trials: int = 1,
    at_once: int = 1,
) -> TokenisedTask:
    """Report the memory that a config's run will take.

    This reads the texts, since the memory depends on their lengths.

    Args:
      say: called with the line.
      mesh: the devices that share the arrays; each device's own memory is checked only on loading.
      trials: how many trials train together, on one copy of the weights.
      at_once: how many of the trials have a batch in memory at a time.

    Returns:
      The texts, for `load`.

    Raises:
      ValueError, FileNotFoundError: the config cannot work, the arrays need more memory than is
        available, or the batches surely take more than the arrays leave. Of several trials, the
        error on memory is a TooManyTrialsError.
    """
    if isinstance(config, OwnConfig):  # whose function makes its weights to show their shapes
        return read_texts(config)
    too_large = ValueError if trials == 1 else TooManyTrialsError
    step = AbstractStep.of(config)
    one, room = Held.of(step), memory.available()
    held = one.of_trials(trials)
    devices = 1 if mesh is None else mesh.size
    if room is not None and devices == 1 and held.total > room:
        # What trains in bfloat16 has copies in float32.
        narrower = "model.dtype bfloat16, " if held.weights else ""
        raise too_large(
            f"config.model '{config.model.name}' ({_parts(held, trials)}) takes "
            f"{memory.size(held.total)}, and {memory.size(room)} of memory are available; take a "
            f"smaller model, {narrower}a method that trains less, or "
            + ("more devices (--mesh)" if trials == 1 else FEWER)
        )
    texts = read_texts(config)
    check_ids(config, texts.boundaries[-1])
    batches = Batches.of(step, texts, at_once)
    most = batches.most
    parts = f"{_parts(held, trials)}, gradients and {batches} {memory.size(most)}"
    parts += f"; over {devices} devices" if devices > 1 else ""
    needed = memory.size(held.total + most)
    if room is None:
        say(f"Estimated memory: {needed} ({parts})")
        return texts
    # Simulated devices of a CPU share its memory; each process is taken to have memory of its own.
    shares = jax.process_count() if jax.default_backend() == "cpu" else devices
    left = shares * room - stays(step) - (held.total - one.total)
    said = f"{needed} of {memory.size(shares * room)} ({parts})"
    if held.total + most <= shares * room:
        say(f"Estimated memory: {said}")
        return texts
    parts_help = left > 0 and batches.evaluation <= left
    lower = advice(config, max(2.0, batches.training / left) if parts_help else math.inf)
    if least(most) > left:
        lower += "" if trials == 1 else f", or train {FEWER}"
        raise too_large(f"{asked(config.train)} does not fit into memory: {said}; {lower}")
    say(f"Estimated memory: {said}, which may not be enough: if so, {lower}")
    return texts


def _parts(held: Held, trials: int) -> str:
    """What a run's arrays are, without those that are too small to be seen."""
    names = {
        "weights": held.weights,
        "what is trained": held.trained,
        "the optimiser": held.optimizer,
        "a saved copy": held.saved,
        "merged weights": held.merged,
    }
    said = [f"{name} {memory.size(each)}" for name, each in names.items() if each >= SMALLEST] or [
        "arrays below 0.1 MiB"
    ]
    return ", ".join(said) + (f", for {trials} trials" if trials > 1 else "")


SHOWN = 5
"""The most classes whose examples are counted."""
LONGEST = 30
"""The most characters of a class's name."""


def describe(section: ExampleSettings, texts: TokenisedTask) -> str:
    """The line on the examples of a config's `data`.

    Args:
      texts: the result of `read_texts` for this config.
    """
    task = texts.task
    choices = task.choices if isinstance(task, data.Task) else 1
    scored = task.validation, *task.extra.values()
    train, score, predict = (
        sum(map(len, parts)) // choices
        for parts in ((task.train,), scored, task.unlabelled.values())
    )
    unit = "example" if choices == 1 else "question"
    if is_generated(section.name, section.source):
        unit = f"generated {unit}"
    kind = f" of {choices} choices" if choices > 1 else ""
    said = f"data: {train:,} {unit}{'s' if train > 1 else ''}{kind} to train on{_classes(task)}"
    said += f", {score:,} to score" + (f", {predict:,} to predict" if predict else "")
    return said + _cut(section, texts)


def passed_over(frozen: Frozen) -> str | None:
    """The line on weights that "all-linear" leaves out and that a user may want; None without any.

    `lj.summary` also counts biases, norms and positions.
    """
    found = [f"{kind} ({len(p)})" for kind, p in frozen.spec.left_out if kind != WITHOUT_PRODUCT]
    return f"config.targets leaves out: {', '.join(found)}" if found else None


def _classes(task: data.Task | data.TextTask) -> str:
    """How many training examples each class has; empty where examples have no classes."""
    if not isinstance(task, data.Task) or not task.label_names or task.choices > 1:
        return ""
    names, labels = task.label_names, task.train.labels
    assert labels is not None
    counts = np.bincount(labels, minlength=len(names))
    said = [f"{_name(name)}: {count:,}" for name, count in zip(names, counts, strict=True)]
    more = f" and {len(said) - SHOWN} more classes" if len(said) > SHOWN else ""
    return f" ({', '.join(said[:SHOWN])}{more})"


def _name(name: str) -> str:
    short = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    return short if short.isprintable() else repr(short)  # one line


def _cut(section: ExampleSettings, texts: TokenisedTask) -> str:
    """How many texts are longer than a text may be; empty if none is."""
    cut = sum(each.truncated for each in texts.encoded.values())
    if not cut or not isinstance(section, TokenSettings):
        return ""
    task, own, most = texts.task, section.max_length, texts.shape.max_tokens
    parts = {"validation": task.validation, **task.extra, **task.unlabelled}
    count = len(task.train) + sum(map(_rows, parts.values()))
    limit = f"config.data.max_length {own}" if own <= most else f"the model's limit of {most}"
    where = ", at the beginning of the prompt" if isinstance(task, data.TextTask) else ""
    are = agree(cut, "is", "are")
    return f"; {cut:,} of {count:,} texts {are} cut to {limit} tokens{where}"


def _rows(part: data.Examples | data.Prompts) -> int:
    """How many texts a part has: with each of its options, a prompt is another text."""
    if isinstance(part, data.Prompts) and part.options is not None:
        return int(part.option_counts.sum())
    return len(part)
