"""All methods: how many numbers each trains of one matrix or model, what a step costs, its paper.

Facts come from the method's code and docstring, and from the suite `methods` of `benchmarks`.
"""

import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
import variants
from configs.settings import EncoderSettings
from experiments.analysis import labels
from experiments.catalogue.abilities import Abilities, abilities
from experiments.planning.abstract_step import OUTPUTS, batch_of
from experiments.planning.model_sizes import ON_THE_HUB
from experiments.setup import classification
from experiments.setup.from_config import variants_of
from lora_jax.base import Uses
from lora_jax.messages import nearest_if_close
from lora_jax.models import families
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.parts.config_checks import DecoderConfig
from lora_jax.models.published.load import (
    abstract_decoder,
    kind_of,
    read_decoder_config,
    read_encoder_config,
)
from lora_jax.models.published.location import locate
from lora_jax.transform import target_patterns
from lora_jax.transform.placement import count_shared, group_of, place, trains
from lora_jax.variant import Variant

MOST_RANKS = 512
"""The largest rank that vLLM serves (its --max-lora-rank)."""
SHAPE = "768x768"
KERNEL = "kernel"
LINEARS = "layers/.*/kernel"
"""The linear layers of our models' blocks, for methods whose files suggest no targets."""
ARXIV = re.compile(r"\barxiv(?:\.org/abs/|[:\s]+)(\d{4}\.\d{4,5})", re.IGNORECASE)
OPENREVIEW = re.compile(r"\bopenreview\s+(\w+)")
FILE = Path(__file__).parents[1] / "results" / "bench" / "methods.json"
LORA = "lora"


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The time of a step over that of LoRA's: the median over neighbouring turns, and quartiles."""

    middle: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The ratio of each method that was measured, by name; and on what it was measured."""

    ratios: Mapping[str, StepCost]
    machine: str = ""
    """Empty if nothing was measured."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, with its default settings."""

    name: str
    """For `variants.make`."""
    title: str
    idea: str
    parameters: int | None
    """How many numbers it trains of the matrix or model; None if it cannot adapt that."""
    obstacle: str
    """Why it cannot; empty if it can."""
    abilities: Abilities | None
    """None for a method without an adapter."""
    step: StepCost | None
    """The time of a training step over that of LoRA's; None if it was not measured."""
    peft: str
    paper: str
    """An address, or nothing."""

    @property
    def served_rank(self) -> int | None:
        """The rank with which vLLM serves it as plain LoRA; None if it cannot."""
        rank = self.abilities and self.abilities.lora_rank
        return rank if rank is not None and rank <= MOST_RANKS else None


def _method(name: str, targets: tuple, uses: Uses, costs: StepCosts) -> Method:
    """Find out all about a method.

    Raises:
      ValueError: there is no such method, or its code fails on every matrix.
    """
    kind = variants.find(name)
    try:
        able = abilities(variants.make(name)) if kind.adapts else None
    except Exception as error:  # of a user's code
        said = f"variant '{name}': {type(error).__name__}: {error}; lora_jax.check says where"
        raise ValueError(said) from error
    obstacle, parameters = "", None
    try:
        parameters = trained(name, targets, uses)
    except ValueError as error:
        obstacle = str(error).partition("; ")[0]  # what follows is advice for `targets`
    return Method(
        name=name,
        title=labels.method(name),
        idea=idea(kind),
        parameters=parameters,
        obstacle=obstacle,
        abilities=able,
        step=costs.ratios.get(name),
        peft=vars(kind).get("peft", ""),  # a subclass is another method
        paper=paper(kind),
    )


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Methods in the order of a table, and what their numbers are of."""

    of: str
    """What the parameters are of, as a sentence has it: `a 768x768 matrix`."""
    methods: Sequence[Method]
    machine: str
    """Where steps were measured; empty if none was."""


def of_matrix(shape: tuple[int, int], own: Sequence[str] = ()) -> Catalogue:
    """All methods of this project and one's own, with the parameters of an (in, out) matrix.

    Args:
      own: dotted names of further methods, for `variants.make`.

    Raises:
      ValueError: there is no such method.
    """
    uses, costs = matrix(shape), read_costs()
    rows = [_method(name, (KERNEL,), uses, costs) for name in _names(own)]
    return Catalogue(f"a {shape[0]}x{shape[1]} matrix", rows, costs.machine)


def of_model(name: str, own: Sequence[str] = ()) -> Catalogue:
    """The same with the parameters of a whole model, in the targets that a method suggests."""
    uses, costs = model(name), read_costs()
    suggested = [(each, variants.find(each).suggested.targets) for each in _names(own)]
    rows = [_method(each, targets or (LINEARS,), uses, costs) for each, targets in suggested]
    of = f"{name} (in the targets that a method's file suggests, else in all linears of its blocks)"
    return Catalogue(of, rows, costs.machine)


def _names(own: Sequence[str]) -> list[str]:
    for name in own:
        variants.find(name)
    return labels.in_order([*variants.names(), *own])


def shape_of(text: str) -> tuple[int, int]:
    """The shape that a flag names: `4096x11008`.

    Raises:
      ValueError: the text is not a shape.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
    if match is None:
        raise ValueError(f"--shape={text}: expected INPUTSxOUTPUTS, such as --shape={SHAPE}")
    return int(match[1]), int(match[2])


def matrix(shape: tuple[int, int]) -> Uses:
    """The weights of a model that is one product with a matrix, named `KERNEL`."""
    params = {KERNEL: jax.ShapeDtypeStruct(shape, jnp.float32)}
    x = jax.ShapeDtypeStruct((1, shape[0]), jnp.float32)
    return lj.discover(lambda params, x: x @ params[KERNEL], params, x)


def model(name: str) -> Uses:
    """The weights of a model, from its sizes alone; an encoder is a classifier of two classes.

    Args:
      name: one of `ON_THE_HUB`, or what `locate` takes.

    Raises:
      ValueError, FileNotFoundError: there is no such model.
    """
    batch = batch_of(rows=1, tokens=8)  # no parameter depends on these
    inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    return lj.discover(*_abstract(name), *inputs)


def _abstract(name: str) -> tuple[Any, Any]:
    """The forward pass of a model, and the shapes of its parameters."""
    if content := ON_THE_HUB.get(name):
        return _decoder(families.read(content))
    try:
        where = locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{nearest_if_close(name, ON_THE_HUB)}") from error
    if kind_of(where) == "encoder":
        shape, settings = read_encoder_config(where), EncoderSettings(name=name)
        return lj.from_nnx(classification.abstract(shape, settings, OUTPUTS))
    return _decoder(read_decoder_config(where))


def _decoder(config: DecoderConfig) -> tuple[Any, Any]:
    # Layers in a scan are traced once.
    return completion_likelihood(abstract_decoder(config, unroll=1), longest=1)


def trained(name: str, targets: Sequence[Any], uses: Uses) -> int:
    """How many numbers a method trains with its default settings, before any rank is dropped.

    Args:
      name: as for `variants.make`.
      targets: patterns, or pairs of a pattern and settings.

    Raises:
      ValueError: it cannot adapt a target, or a pattern matches nothing.
    """
    rules = tuple(variants_of(targets, name, {}).items())
    assigned = target_patterns.assign(rules, uses)
    adapted = {path: each for path, each in assigned.items() if target_patterns.adapting(each)}
    placed = [place(uses[path], each, None) for path, each in adapted.items()]
    shapes: dict[Variant, list[tuple[int, int]]] = {}
    for each in placed:
        shapes.setdefault(group_of(each), []).extend(each.matrices)
    own = sum(each.count for each in placed) + sum(itertools.starmap(count_shared, shapes.items()))
    whole = [path for path in uses if path not in adapted and trains(uses[path], rules, assigned)]
    return own + sum(math.prod(uses[path].shape) for path in whole)


def idea(kind: type[Variant]) -> str:
    """The first line of the module's docstring, without the method's name and the full stop."""
    first = _docstring(kind).partition("\n")[0]
    return first.partition(": ")[2].rstrip(".") or first.rstrip(".")


def paper(kind: type[Variant]) -> str:
    """The address of the first paper that the module's docstring names; empty if there is none."""
    said = _docstring(kind)
    if found := ARXIV.search(said):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := OPENREVIEW.search(said):
        return f"https://openreview.net/forum?id={found[1]}"
    return ""


def _docstring(kind: type[Variant]) -> str:
    return (sys.modules[kind.__module__].__doc__ or "").strip()


def read_costs(path: Path = FILE) -> StepCosts:
    """The costs in a file of results.

    Nothing but LoRA has one if there is no file, or only tiny models were timed.
    """
    ratios = {LORA: StepCost(1.0, 1.0, 1.0)}
    if not path.exists():
        return StepCosts(ratios)
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["smoke"]:
        return StepCosts(ratios)
    for group in content["groups"]:
        found = group["ratios"][0]
        ratios[group["name"]] = StepCost(found["middle"], found["low"], found["high"])
    machine = content["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, jax {machine['versions']['jax']}"
    return StepCosts(ratios, where)
