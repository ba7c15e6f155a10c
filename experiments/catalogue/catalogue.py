"""All methods, with parameters of one matrix or of one model."""

import dataclasses
from collections.abc import Sequence

import variants
from experiments.analysis import labels
from experiments.catalogue import method, sizes, step_costs
from experiments.catalogue.method import Method


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
    uses, costs = sizes.matrix(shape), step_costs.read()
    rows = [method.of_matrix(name, uses, costs) for name in _names(own)]
    return Catalogue(f"a {shape[0]}x{shape[1]} matrix", rows, costs.machine)


def of_model(name: str, own: Sequence[str] = ()) -> Catalogue:
    """The same with the parameters of a whole model (see `sizes.model`)."""
    uses, costs = sizes.model(name), step_costs.read()
    rows = [method.of_model(each, uses, costs) for each in _names(own)]
    of = f"{name} (in the targets that a method's file suggests, else in all linears of its blocks)"
    return Catalogue(of, rows, costs.machine)


def _names(own: Sequence[str]) -> list[str]:
    for name in own:
        variants.find(name)
    return labels.in_order([*variants.names(), *own])
