"""Several adapters of one base: check that it is one, and put its parts together."""

import dataclasses
from collections.abc import Sequence

from lora_jax.adapters.base_digest import OtherBaseError, base_digests, require_base
from lora_jax.transform.placement import Frozen


def require_one_base(frozen: Sequence[Frozen]) -> None:
    """Raise a ValueError, in one line, unless all adapters have the same base.

    Parameters that one of them trains in full are in the base of the others only.
    """
    first, *others = frozen
    known = base_digests(first)
    for number, other in enumerate(others, 2):
        if {*other.spec.paths} != {*first.spec.paths}:
            raise ValueError(f"adapter {number} is of a model with other parameters than the first")
        trained = {*first.spec.paths} - (first.base.keys() & other.base.keys())
        try:
            require_base(known, other, trained, "adapter 1")
        except OtherBaseError as error:
            raise ValueError(f"{error.problem}, for adapter {number}") from None


def whole_base(frozen: Sequence[Frozen]) -> Frozen:
    """All parameters that any of them keeps frozen, and each weight that any adapts or quantises.

    A weight is placed as the first that adapts it, or else quantises it, has it.
    """
    base, placed = {}, {}
    for each in reversed(frozen):
        base |= each.base
        placed |= {one.use.path: one for one in each.spec.placements if not one.adapts}
    for each in reversed(frozen):
        placed |= {one.use.path: one for one in each.spec.adapted}
    spec = frozen[0].spec
    inside = tuple(placed[path] for path in spec.paths if path in placed)
    return Frozen(base, {}, dataclasses.replace(spec, placements=inside))
