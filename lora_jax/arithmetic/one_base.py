"""Several adapters of one base: check that it is one, and put its parts together."""

import dataclasses
from collections.abc import Sequence

from lora_jax.adapters.base_digest import OtherBaseError, base_digests, require_base
from lora_jax.transform.placement import Frozen


def require_one_base(frozen: Sequence[Frozen], names: Sequence[str] | None = None) -> None:
    """Raise a ValueError, in one line, unless all adapters have the same base.

    Parameters that one of them trains in full are in the base of the others only.

    Args:
      names: of the adapters, for the message; None: their numbers.
    """
    names = names or [f"adapter {number}" for number in range(1, len(frozen) + 1)]
    first, known = frozen[0], base_digests(frozen[0])
    for name, other in zip(names[1:], frozen[1:], strict=True):
        if {*other.spec.paths} != {*first.spec.paths}:
            raise ValueError(f"{name} is of a model with other parameters than that of {names[0]}")
        trained = {*first.spec.paths} - (first.base.keys() & other.base.keys())
        try:
            require_base(known, base_digests(other), trained, names[0])
        except OtherBaseError as error:
            raise ValueError(f"{error.problem}; here is {name}") from None


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
    full = {use.path: use for each in frozen for use in each.spec.full}
    return Frozen(base, {}, dataclasses.replace(spec, placements=inside, full=(*full.values(),)))
