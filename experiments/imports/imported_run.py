"""The config and the experiment of a run that would train an adapter of others.

Lines for users say what the adapter is, and what may be wrong with it in this run.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lora_jax as lj
from configs.settings import IMPORTED, ClassifierConfig, RunConfig
from experiments.setup.config import fill, parse
from experiments.setup.experiment import Experiment, build
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.load_peft import Loaded
from lora_jax.models.published.location import hub_name, locate
from lora_jax.partition import only
from lora_jax.peft_format import quoted
from lora_jax.table import Table

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


CLASSIFIER, DECODER, ANY = "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"
"""Values of PEFT's `task_type`."""


def table(found: Loaded) -> str:
    """The method and the rank of every weight, and what else is in the files."""
    rows = []
    for path, variant, layers in targets_of(found.frozen):
        span = "" if layers is None else " to ".join(map(str, sorted({layers[0], layers[-1]})))
        rows.append((path, name_of(variant), str(getattr(variant, "rank", "")), span))
    rows += [(path, "in full", "", "") for path in found.trainable["params"]]
    return Table(("weight", "method", "rank", "layers"), rows).to_text()


def base_model(config: RunConfig, found: Loaded) -> str:
    """What the files say of their base model, beside this run's."""
    said = found.config.get("base_model_name_or_path")
    return f"base model: {config.model.name}; the adapter names {quoted(said) if said else 'none'}"


def drawn(model: TaskAndModel, found: Loaded) -> list[str]:
    """The paths of parts of a head that neither the adapter nor the base has."""
    return [path for path in model.fresh if path not in found.trainable["params"]]


def new_head(given: str, config: RunConfig, drawn: list[str]) -> str:
    """A line on parts of a head that were drawn; empty if there are none."""
    if not drawn:
        return ""
    return (
        f"neither {given} nor {config.model.name} has {', '.join(drawn)}: they are drawn from "
        f"config.seed {config.seed}, and the scores mean nothing before they have trained"
    )


def doubts(config: RunConfig, found: Loaded) -> Iterator[str]:
    """What may be wrong with using the adapter in this run, a line each."""
    said, task = (found.config.get(name) for name in ("base_model_name_or_path", "task_type"))
    known = hub_name(config.model.name) or config.model.name
    if said and _tail(said) not in (_tail(known), _tail(locate(config.model.name))):
        yield (
            f"the adapter says that its base model is {quoted(said)}, and config.model.name is "
            f"{config.model.name}; only their shapes have been compared"
        )
    classifier = isinstance(config, ClassifierConfig)
    wanted = CLASSIFIER if classifier else DECODER
    if task and task not in (wanted, ANY):
        yield (
            f"the adapter belongs to a {quoted(task)} model, but this config describes a {wanted} "
            "model"
        )
    mean = getattr(config.model, "pool", "") == "mean"
    if classifier and task == CLASSIFIER and found.trainable["params"] and mean:
        yield (
            f"the head of a {CLASSIFIER} adapter reads the first token in PEFT, and here the mean "
            "of all; --config.model.pool=cls reads the first"
        )


def _tail(name: Any) -> str:
    """The last part of a model's name: organisations and folders differ from place to place."""
    return str(name).rstrip("/").rpartition("/")[2].lower()
