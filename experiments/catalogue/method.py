"""All that the table says about one method."""

import dataclasses

import variants
from experiments.analysis import labels
from experiments.catalogue import sizes, source
from experiments.catalogue.abilities import Abilities, abilities
from experiments.catalogue.step_costs import StepCost, StepCosts
from lora_jax.uses import Uses

MOST_RANKS = 512
"""The largest rank that vLLM serves (its --max-lora-rank)."""


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


def of_matrix(name: str, uses: Uses, costs: StepCosts) -> Method:
    """A method, with the parameters of one matrix (`sizes.matrix`)."""
    return _method(name, (sizes.KERNEL,), uses, costs)


def of_model(name: str, uses: Uses, costs: StepCosts) -> Method:
    """A method, with the parameters of a whole model, in the targets that its file suggests."""
    return _method(name, variants.find(name).suggested.targets or (sizes.LINEARS,), uses, costs)


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
        parameters = sizes.trained(name, targets, uses)
    except ValueError as error:
        obstacle = str(error).partition("; ")[0]  # what follows is advice for `targets`
    return Method(
        name=name,
        title=labels.method(name),
        idea=source.idea(kind),
        parameters=parameters,
        obstacle=obstacle,
        abilities=able,
        step=costs.ratios.get(name),
        peft=vars(kind).get("peft", ""),  # a subclass is another method
        paper=source.paper(kind),
    )
