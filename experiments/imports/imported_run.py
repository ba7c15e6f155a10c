"""The config and the experiment of a run that would train an adapter of others."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lora_jax as lj
from configs.settings import IMPORTED, RunConfig
from experiments.setup.config import fill, parse
from experiments.setup.experiment import Experiment, build
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.load_peft import Loaded
from lora_jax.partition import only

FILE = "imported.json"
"""Says where the adapter comes from."""


class Target(NamedTuple):
    """A weight with an adapter, or neighbouring layers of one whose adapters are alike."""

    path: str
    variant: lj.Variant
    layers: range | None
    """None if they are all that the weight has."""


def targets_of(frozen: lj.Frozen) -> Iterator[Target]:
    """Every adapted weight, in parts if its layers differ."""
    for placement in frozen.spec.adapted:
        path, own = placement.use.path, placement.layers
        if not isinstance(own, tuple):
            yield Target(path, own, None)
            continue
        for variant, each in itertools.groupby(range(len(own)), lambda n, own=own: own[n]):
            which = list(each)
            if variant is not None:
                yield Target(path, variant, range(which[0], which[-1] + 1))


def config_of(plain: Mapping[str, Any], found: Loaded) -> RunConfig:
    """The config of a run that would train this adapter.

    Args:
      plain: the user's config as plain data; what it leaves to its method, such as the learning
        rate, is taken from that of the adapter.
    """
    targets = list(targets_of(found.frozen))
    usual, _ = Counter(each.variant for each in targets).most_common(1)[0]
    own = written(usual)
    changes = {
        "experiment": IMPORTED,
        "study": {},
        "start_from": None,
        "variant": {"name": own["name"]},
        "targets": [_target(each, usual) for each in targets],
        "also_train": [only(path) for path in found.trainable["params"]],
    }
    return parse({**fill({**plain, **changes}), "variant": own})


def _target(target: Target, usual: lj.Variant) -> Any:
    """An entry of a config's `targets`."""
    settings: dict[str, Any] = {} if target.variant == usual else written(target.variant)
    if target.layers is not None:
        settings["layers"] = [target.layers.start, target.layers.stop, None]
    return [only(target.path), settings] if settings else only(target.path)


def written(variant: lj.Variant) -> dict[str, Any]:
    """A variant as a config's section: its name, and every setting that a config would not have."""
    kind = type(variant)
    said = {"total_steps", *kind.suggested.settings}  # which a run fills in otherwise
    values = {field.name: getattr(variant, field.name) for field in dataclasses.fields(kind)}
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {n: x for n, x in values.items() if x is not None and (n in said or x != defaults[n])}
    return {"name": name_of(variant), **given}


def name_of(variant: lj.Variant) -> str:
    """What a config calls a variant: the name of its file in `variants/`, or of its module."""
    return type(variant).__module__.removeprefix("variants.")


def experiment_of(config: RunConfig, model: TaskAndModel, found: Loaded) -> Experiment:
    """The experiment of `config_of`, with the imported adapter.

    Raises:
      ValueError: the config does not make this adapter.
    """
    made = build(config, model)
    # An adapter is read without its head, which trains in full.
    if made.frozen.spec != dataclasses.replace(found.frozen.spec, full=made.frozen.spec.full):
        differ = [
            theirs.use.path
            for mine, theirs in zip(
                made.frozen.spec.adapted, found.frozen.spec.adapted, strict=False
            )
            if mine != theirs
        ]
        raise ValueError(f"no config makes this adapter of {', '.join(differ) or 'these weights'}")
    own = {"constants": found.frozen.constants, "shared": found.frozen.shared}
    frozen = dataclasses.replace(made.frozen, **own)
    return dataclasses.replace(made, trainable=found.trainable, frozen=frozen, gathered=None)
