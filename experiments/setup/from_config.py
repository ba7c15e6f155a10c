"""Make objects from the settings of a config; only this module turns names into objects."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import lora_jax as lj
import variants
from configs import settings
from lora_jax import data
from lora_jax.data.metrics import label_metrics
from lora_jax.data.split import TooFewError
from lora_jax.messages import require_known
from lora_jax.methods.rank_budget import MOST_STEPS
from lora_jax.training import optim
from lora_jax.training.loop_settings import Loop
from lora_jax.training.optimizers import KINDS, Kind, Optimizer, scaled

ANY_BASE = "any_base:"
"""A prefix of the folder in a config's `start_from`, which allows an adapter of another base."""
FEW_STEPS = 1000
"""What stands for the steps of a run where they are not known, if its variants take so few."""
STORAGES = {"nf4": lj.NF4(), "nf4_double": lj.NF4(double_quant=True), "int8": lj.Int8()}
_LARGEST_COUNT = 2**31 - 1
"""What an optimiser counts to."""
_Task = TypeVar("_Task", data.Task, data.TextTask)


def make_targets(config: settings.RunConfig, steps: int = MOST_STEPS) -> dict[Any, lj.Variant]:
    """The variant of each target; its `total_steps`, unless the config sets them, are `steps`.

    By default they are as many as a variant takes, for a run whose steps are not known.
    """
    return variants_of(config.targets, config.variant.name, config.variant.settings, steps)


def placeholder_steps(config: settings.RunConfig) -> int:
    """Steps that suit a config's variants, where those of the run are not known."""
    for steps in (FEW_STEPS, 10_000, 100_000):
        with contextlib.suppress(ValueError):  # of AdaLoRA's schedule, which takes more
            make_targets(config, steps)
            return steps
    return MOST_STEPS


def variants_of(
    targets: Sequence[Any], name: str, settings: Mapping[str, Any], steps: int | None = None
) -> dict[Any, lj.Variant]:
    """The variant of each target, which is the one of this name unless the target says otherwise.

    A target is a pattern, or (pattern, settings). Its settings change those of the variant.
    `layers` is (start, stop, step). `name` names another variant, which takes none of `settings`.

    Args:
      steps: the `total_steps` of variants that have any and are not given them.
    """
    made: dict[Any, lj.Variant] = {}
    for each in targets:
        pattern, own = _with_settings(each)
        where = lj.layers(pattern, _slice(own["layers"])) if "layers" in own else pattern
        inherited = {} if "name" in own else settings
        changed = {**inherited, **{k: v for k, v in own.items() if k not in ("layers", "name")}}
        given = {k: v for k, v in changed.items() if v is not None}
        if where in made:  # the first would decide, and this one be lost
            raise ValueError(f"config.targets names '{pattern}' twice")
        try:
            kind = variants.find(own.get("name", name))
            if steps is not None and hasattr(kind, "total_steps"):
                given.setdefault("total_steps", steps)
            made[where] = variants.make(own.get("name", name), **given)
        except ValueError as error:
            section = f"config.targets: '{pattern}'" if {*own} - {"layers"} else "config.variant"
            raise ValueError(f"{section}: {error}") from error
    return made


def _with_settings(target: Any) -> tuple[str, Mapping[str, Any]]:
    match target:
        case str():
            return target, {}
        case [str(pattern), {**own}]:
            return pattern, own
    raise ValueError(f"config.targets: {target!r} is neither a pattern nor (pattern, settings)")


def _slice(layers: Any) -> slice:
    match layers:
        case [int() | None, int() | None, int() | None] if layers[2] != 0:
            return slice(*layers)
    raise ValueError(f"config.targets: layers {layers!r} is not (start, stop, step)")


def make_start(start_from: str) -> tuple[str, bool]:
    """The path of the adapter that a run starts from, and whether any base model is allowed."""
    path = start_from.removeprefix(ANY_BASE)
    return path, path != start_from


def make_storage(section: settings.QuantizeSettings) -> dict[str, Any]:
    """The storage of each pattern of frozen weights; empty if all weights are stored densely."""
    name = section.storage
    if name == "none":
        return {}
    require_known(name, ["none", *STORAGES], f"unknown quantize.storage '{name}'")
    return dict.fromkeys(section.patterns, STORAGES[name])


def adapt(
    config: settings.RunConfig, forward: Any, targets: Mapping[Any, lj.Variant]
) -> lj.Adapted:
    """The model of a config with these variants, over frozen weights as the config stores them."""
    return lj.adapt(forward, None, targets, config.also_train, make_storage(config.quantize))


def make_any_task(config: settings.RunConfig) -> data.Task | data.TextTask:
    """The task that a config names."""
    if isinstance(config, settings.TextConfig):
        return make_text_task(config.data)
    if isinstance(config, settings.OwnConfig):
        return make_array_task(config.data)
    return make_task(config.data)  # type: ignore[arg-type]


def make_task(section: settings.DataSettings) -> data.Task:
    """The task that a classifier's config names.

    The config may limit the training examples, and add another task's validation part as `extra`.
    """

    def load(name: str, validation: int) -> data.Task:
        where = section.folder or None, section.files
        return data.load_task(name, section.source, *where, validation=validation)

    with _named("validation", section.validation):
        task = load(section.name, section.validation)
    if section.extra:
        if section.source == "files":
            raise ValueError("data.extra: of source 'files' it is a file, data.files.extra")
        other = load(section.extra, 0)
        both = {each.name: each.label_names and len(each.label_names) for each in (task, other)}
        if len(set(both.values())) > 1:  # names may differ, as equivalent and duplicate do
            said = " and ".join(f"'{name}' {count or 'no'} classes" for name, count in both.items())
            raise ValueError(f"data.extra must have as many classes: {said}")
        if task.choices != other.choices:
            texts = " and ".join(f"'{each.name}'" for each in (task, other))
            raise ValueError(f"data.extra: of {texts}, one alone asks which of its texts is right")
        task = task.with_extra("extra", other.validation, other.label_names)
    return _limited(task, section)


def make_text_task(section: settings.TextSettings) -> data.TextTask:
    """The text-to-text task that a config names, with fewer examples if the config says so."""
    where = section.folder or None, section.files
    with _named("validation", section.validation):
        task = data.load_text_task(
            section.name, section.source, *where, validation=section.validation
        )
    if section.scored:
        task = task.scored(section.scored)
    return _limited(task, section)


def make_array_task(section: settings.ArraySettings) -> data.Task:
    """The task of images or other arrays that a config names."""
    where = section.folder or None, section.files, section.validation
    with _named("validation", section.validation):
        task = data.load_array_task(section.name, section.source, *where, section.classes)
    return _limited(task, section)


def _limited(task: _Task, section: settings.ExampleSettings) -> _Task:
    """The task with as many training examples, and with the parts, that a config asks for."""
    if not section.unlabelled:
        task = dataclasses.replace(task, unlabelled={})
    with _named("train", section.train, "; 0 takes all"):
        return task.few(section.train, section.draw) if section.train else task


@contextlib.contextmanager
def _named(key: str, size: int, way_out: str = "") -> Iterator[None]:
    """Name a setting of `data` in the error of a task with fewer examples than its `size`."""
    try:
        yield
    except TooFewError as error:
        if not size:  # it is the source's own number
            raise
        raise ValueError(f"config.data.{key} {size}: {error}{way_out}") from error


def make_loop(section: settings.TrainSettings, examples: int, metric: str) -> Loop:
    """The training loop: its steps, and how often to log, evaluate and save."""
    wanted = -(-examples // section.batch_size) * section.epochs
    wanted = min(wanted, section.max_steps or wanted)
    if wanted > _LARGEST_COUNT:
        raise ValueError(
            f"config.train.epochs {section.epochs:g}: a run has at most {_LARGEST_COUNT:,} steps"
        )
    steps = max(1, round(wanted)) if section.epochs else 0
    return Loop(
        steps=steps,
        mode="min" if metric in label_metrics.LOWER_IS_BETTER else "max",
        log_every=section.log_every,
        evaluate_every=section.evaluate_every,
        evaluations=min(section.evaluations, steps),
        checkpoint_every=section.checkpoint_every,
        metric=metric,
        target=section.target_score,
        evaluate_first=section.evaluate_first,
    )


def kind_of_optimizer(section: settings.TrainSettings) -> Kind:
    """The kind of optimiser that a config's `train` names.

    Raises:
      ValueError: no such optimiser.
    """
    name = section.optimizer or "adamw"
    require_known(name, KINDS, f"unknown config.train.optimizer '{name}'")
    return KINDS[name]


def make_hyper(config: settings.RunConfig, steps: int) -> dict[str, float]:
    """The numbers of an optimiser; each may differ between the trials of one program.

    Raises:
      ValueError: the warm-up takes all steps, or there is no such optimiser.
    """
    section, kind = config.optimizer, kind_of_optimizer(config.train)
    if section.warmup_steps >= steps and section.warmup_steps:
        raise ValueError(
            f"config.optimizer.warmup_steps {section.warmup_steps} leaves nothing of {steps} steps"
        )
    names = ("learning_rate", "weight_decay", *kind.reads, "clip")
    hyper = {name: getattr(section, name) for name in names}
    if kind.momentum is not None and section.momentum is None:
        hyper["momentum"] = kind.momentum
    hyper["warmup"] = section.warmup_steps or round(section.warmup_ratio * steps)
    if section.head_learning_rate is not None:
        hyper["head_ratio"] = section.head_learning_rate / section.learning_rate
    if config.train.ema:
        hyper["ema"] = config.train.ema
    return hyper


def make_optimizer(config: settings.RunConfig, hyper: Mapping[str, Any], steps: int) -> Optimizer:
    """Make the optimiser with its schedule, and a learning rate for `also_train`, if it is set.

    It does not clip gradients: the training step does, before AdaLoRA computes scores from them.

    Args:
      hyper: the result of `make_hyper`; its numbers may be traced.
    """
    schedule, kind = config.optimizer.schedule, kind_of_optimizer(config.train)
    rate = optim.traceable_schedule(schedule, hyper["learning_rate"], steps, hyper["warmup"])
    tx = kind.make(rate, {name: hyper[name] for name in ("weight_decay", *kind.reads)})
    if "head_ratio" not in hyper:
        return tx
    return scaled(tx, optim.scale_params(config.also_train, hyper["head_ratio"]))
