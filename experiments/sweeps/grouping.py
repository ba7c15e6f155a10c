"""Find the trials that can share one program, and the variants of that program.

Trials whose variants differ are traced, without weights (`AbstractRun`): equal traces share.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
from configs.settings import RunConfig, TextConfig
from experiments.runs.group import traced_step
from experiments.setup import from_config
from experiments.setup.forward_pass import model_inputs, predictor
from experiments.setup.load import load_abstract
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.training.fingerprint import fingerprint
from lora_jax.training.masking import held, rows_of, same_when_masked
from lora_jax.training.step import TrainState
from lora_jax.transform.adapt import init_shapes

Targets = Mapping[Any, lj.Variant]
BatchShapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractRun:
    """All of a config except its variants, with shapes in place of weights and examples."""

    config: RunConfig
    loaded: TaskAndModel
    steps: int
    trained: tuple[BatchShapes, ...]
    """The shapes of training batches, one for each padded length."""
    scored: tuple[BatchShapes, ...]
    """The shapes of evaluation batches, one for each padded length."""

    @classmethod
    def of(cls, config: RunConfig) -> "AbstractRun":
        """The abstract run of a config, and of all that differ in settings of variants only.

        This tokenises the texts, as every run does, with the same cache.

        Raises:
          ValueError, OSError, ImportError: the model or data cannot be loaded.
        """
        loaded, size = load_abstract(config), config.train.batch_size
        texts, examples = loaded.texts, len(loaded.texts.encoded["train"])
        return cls(
            config=config,
            loaded=loaded,
            steps=from_config.make_loop(config.train, examples, texts.task.metric).steps,
            trained=_batches(texts, ["train"], size),
            scored=_batches(texts, sorted(texts.encoded.keys() - {"train"}), size),
        )

    def smallest_matrix(self, targets: Targets) -> tuple[int, int]:
        """The (in, out) of the smallest adapted matrix."""
        _, _, frozen = self._init(targets)
        shapes = [each.use.matrix for each in frozen.spec.adapted]
        return min(shapes, key=math.prod, default=(1, 1))

    def program(self, targets: Targets) -> str:
        """The fingerprint of the training steps and predictions with these variants.

        The factors, constants and shared arrays, and the optimiser's numbers, are inputs of the
        program. Everything is traced for each batch shape of a run, since a variant may depend on
        the shape.
        """
        config = self.config
        adapted, trainable, frozen = self._init(targets)
        predict = predictor(adapted, config.model, self.loaded.eval_forward)
        step = traced_step(adapted, predict, self.loaded.texts.loss, config, self.steps)
        numbers, key = from_config.make_hyper(config, self.steps), jax.random.key(0)
        hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in numbers}

        def trained(hyper: Any, trainable: Any, frozen: lj.Frozen, batch: Any) -> Any:
            tx = from_config.make_optimizer(config, hyper, self.steps)
            averaged = "ema" in hyper
            state = TrainState.create(adapted, tx, trainable, frozen, key, averaged)
            return step(hyper, state, frozen, batch)

        def scored(trainable: Any, frozen: lj.Frozen, batch: Any) -> Any:
            return predict(trainable, frozen, batch, None)

        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs this
            steps = [fingerprint(trained, hyper, trainable, frozen, each) for each in self.trained]
            scores = [fingerprint(scored, trainable, frozen, each) for each in self.scored]
        return " ".join([*steps, *scores])

    def _init(self, targets: Targets) -> tuple[lj.Adapted, Any, lj.Frozen]:
        """The adapted model, and the shapes of its trainable and frozen arrays."""
        key, inputs = jax.random.key(0), model_inputs(self.trained[0])
        forward, params = self.loaded.model(key)
        adapted = from_config.adapt(self.config, forward, targets)
        return adapted, *init_shapes(adapted, key, params, *inputs)


def _batches(texts: TokenisedTask, parts: Sequence[str], size: int) -> tuple[BatchShapes, ...]:
    """The shapes of a batch for each padded length of the parts; shuffling does not change them."""
    found: dict[int, BatchShapes] = {}
    for part in parts:
        for plan in data.eval_plan(texts.encoded[part].lengths, size, texts.boundaries):
            if (length := plan.padded_length) not in found:
                batch = texts.batch(part, plan, size)
                found[length] = {
                    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()
                }
    return tuple(found[length] for length in sorted(found))


Settings = tuple[tuple[Any, lj.Variant], ...]
"""The variant of each target."""


def groups(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Divide the trials into groups that can share a program, and return their numbers.

    If trials have the same model, data and kinds of variants, but other settings of the variants,
    they are traced. They share a program if their traces are equal. So they may differ in the
    values of factors and constants (a scale, an initialisation), but not in what a variant reads
    while it computes.
    """
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        found.setdefault(program_key(config), []).append(number)
    return [part for numbers in found.values() for part in _parts(numbers, configs)]


def program_key(config: RunConfig) -> str:
    """All that trials of a program have in common, except the settings of variants, as a text.

    Raises:
      ValueError: an unknown variant, or a setting that it cannot have.
    """
    targets = from_config.make_targets(config)
    variants = list(targets.values())
    same = (
        config.model,
        dataclasses.replace(config.data, draw=0),
        config.quantize,
        config.also_train,
        dataclasses.replace(config.train, target_score=None, ema=None),
        config.generate if isinstance(config, TextConfig) else None,
        # The optimiser's numbers are inputs of the program (`from_config.make_optimizer`).
        config.optimizer.schedule,
        sorted(from_config.make_hyper(config, _ANY)),
        # Where a number's step depends on all of its factor, padded rows would change it.
        None if from_config.kind_of_optimizer(config.train).elementwise else _ranks(variants),
        [(where, type(variant)) for where, variant in targets.items()],
        _kinds(variants),
        # Such ranks are known only when data have been seen: each trial is alone.
        any(each.allots for each in variants) and config.plain,
    )
    return repr(same)  # in Python 1 == 1.0 == True


_ANY = 2**62
"""Placeholder for the number of steps, where only the names of the optimiser's numbers matter."""


def _ranks(variants: Sequence[lj.Variant]) -> list[tuple[Any, Any]]:
    """The ranks of the variants, and how many rows they allocate."""
    return [(getattr(v, "rank", None), getattr(v, "max_rank", None)) for v in variants]


def _kinds(variants: Sequence[lj.Variant]) -> list[int]:
    """For each target, the first with equal settings; they share arrays and AdaLoRA's budget."""
    return [variants.index(each) for each in variants]


def _parts(numbers: list[int], configs: Sequence[RunConfig]) -> list[list[int]]:
    """Divide the trials of one key by their traces."""
    alike: dict[str, list[int]] = {}  # keyed by text, as in Python 1 == 1.0 == True
    for number in numbers:
        written = repr((configs[number].variant, configs[number].targets))
        alike.setdefault(written, []).append(number)
    if len(alike) == 1:
        return [numbers]
    same = list(alike.values())
    try:
        abstract = AbstractRun.of(configs[numbers[0]])
        targets = [from_config.make_targets(configs[each[0]], abstract.steps) for each in same]
        parts = split(abstract, [tuple(each.items()) for each in targets])
    except Exception:  # the model or texts cannot be loaded; each trial's run reports it
        return same
    return sorted(sorted(n for place in part for n in same[place]) for part in parts)


def split(abstract: AbstractRun, candidates: Sequence[Settings]) -> list[list[int]]:
    """Divide settings into parts with equal programs, and return their numbers.

    The factors in a part's program have enough rows for the largest rank. Settings that cannot be
    traced are a part of their own; their run reports the error.
    """
    matrices: list[Any] = [_tried(abstract.smallest_matrix, dict(each)) for each in candidates]
    wrong = [[n] for n, matrix in enumerate(matrices) if matrix is None]
    right = [n for n, matrix in enumerate(matrices) if matrix is not None]

    places = _places(candidates)

    @functools.cache
    def program(n: int, rows: tuple[int | None, ...]) -> Any:
        # Made anew, as a user's code may keep elsewhere what was made last.
        own = [_tried(dataclasses.replace, variant) or variant for _, variant in candidates[n]]
        wide = [held(variant, most) for variant, most in zip(own, rows, strict=True)]
        good = _kinds(own) == _kinds(wide) and all(
            narrow is each or same_when_masked(narrow, each, matrices[n])
            for narrow, each in zip(own, wide, strict=True)
        )
        where = [pattern for pattern, _ in candidates[n]]
        targets = dict(zip(where, wide, strict=True))
        found = _tried(abstract.program, targets) if good else None
        return None if found is None else (found, places[n])

    return [*_split(program, candidates, right), *wrong]


def _split(
    program: Callable[[int, tuple[int | None, ...]], Any],
    candidates: Sequence[Settings],
    numbers: list[int],
) -> list[list[int]]:
    """Divide the candidates with these `numbers` into parts with equal programs.

    Args:
      program: from a candidate's number, and the rows of each target's factors (None for its own),
        to its trace; None if it cannot share a program.
    """
    if len(numbers) < 2:
        return [numbers] if numbers else []
    columns = zip(*(candidates[n] for n in numbers), strict=True)
    rows = tuple(rows_of([variant for _, variant in column]) for column in columns)
    parts: dict[Any, list[int]] = {}
    for n in numbers:
        found = program(n, rows)
        parts.setdefault(n if found is None else found, []).append(n)
    if len(parts) == 1:
        return [numbers]
    return [part for own in parts.values() for part in _split(program, candidates, own)]


def _places(candidates: Sequence[Settings]) -> list[tuple[int, ...]]:
    """Numbers that tell apart what is equal to Python and written differently.

    The caches of Python, and of `jax.jit` where it wraps a method, take equal variants for one
    another: of the second one they give what was traced of the first, where 1 stands for 1.0, or a
    user's field does not count in `==`.
    """
    writings: dict[lj.Variant, list[str]] = {}

    def place(variant: lj.Variant) -> int:
        fields = [getattr(variant, field.name) for field in dataclasses.fields(variant)]
        writing = repr([(type(value), value) for value in fields])
        known = writings.setdefault(variant, [])
        if writing not in known:
            known.append(writing)
        return known.index(writing)

    return [tuple(place(variant) for _, variant in each) for each in candidates]


def _tried(function: Callable[..., Any], argument: Any) -> Any:
    """The result of a function; None if it fails: a trial's own run reports the error."""
    try:
        return function(argument)
    except Exception:  # a user's code may raise anything
        return None
