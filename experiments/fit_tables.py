"""A fit as tables and sentences."""

from rich.console import Group
from rich.table import Table

from experiments.fit import Fit
from experiments.topologies import GIB
from lora_jax.sharding import AXES

SIMULATED = " Temporaries are the CPU's, which computes bfloat16 in float32: rather an upper bound."


def show(found: Fit) -> Group:
    """Memory, FLOPs and collectives of a fit, and whether it is one."""
    parts = [heading(found), memory(found), flops(found)]
    if found.collectives:
        parts.append(moved(found))
    parts.append(verdict(found))
    return Group(*parts)


def heading(found: Fit) -> str:
    chosen, sizes = found.topology, dict(zip(AXES, found.mesh, strict=True))
    mesh = ", ".join(f"{name} {size}" for name, size in sizes.items())
    compiled = "ahead of time" if chosen.ahead else "on simulated devices of the CPU"
    batch = found.rows * found.mesh[0] * found.mesh[1]
    return (
        f"{chosen}: {chosen.devices} devices of {chosen.capacity / GIB:.2f} GiB, mesh {mesh}; "
        f"{batch} x {found.tokens} tokens at a time, {found.rows} a shard; compiled {compiled}"
    )


def memory(found: Fit) -> Table:
    made = Table("GiB a device", title_justify="left")
    parts = {
        "weights": found.arrays.weights,
        "adapters": found.arrays.adapters,
        "optimiser": found.arrays.optimizer,
        "other": found.arrays.other,
        "temporaries": found.temporaries,
        "program": found.code if found.temporaries is not None else None,
        "total": found.total,
        "capacity": found.topology.capacity,
    }
    for name in parts:
        made.add_column(name, justify="right")
    made.add_row("", *("-" if each is None else f"{each / GIB:.2f}" for each in parts.values()))
    return made


def flops(found: Fit) -> str:
    each = found.flops
    again = f", and {each.recomputed:.3g} to recompute layers" if each.recomputed else ""
    kinds = {"frozen weights (4N)": each.frozen, "trained ones (6n)": each.trained}
    said = " + ".join(f"{value:.3g} for {name}" for name, value in kinds.items() if value)
    return f"FLOPs a token, by analysis: {said} = {each.frozen + each.trained:.3g}{again}"


def moved(found: Fit) -> Table:
    made = Table("collectives a step")
    for name in ("times", "GiB a device"):
        made.add_column(name, justify="right")
    for kind, total in found.collectives.items():
        about = "" if total.exact else "at least "
        made.add_row(kind, f"{about}{total.count:,}", f"{about}{total.bytes / GIB:.3f}")
    return made


def verdict(found: Fit) -> str:
    took = f"compiled in {found.seconds:.0f} s" if found.seconds else "not compiled"
    if not found.fits or found.total is None:
        return f"{found.why_not} ({took})"
    share = found.total / found.topology.capacity
    simulated = "" if found.topology.ahead else SIMULATED
    return f"Fits, in {share:.0%} of a device's memory ({took}).{simulated}"


def short(found: Fit) -> str:
    """A fit in a few words."""
    mesh = ",".join(map(str, found.mesh))
    total = (found.total or 0) / GIB
    return (
        f"{found.topology}, --mesh={mesh}: {total:.2f} of {found.topology.capacity / GIB:.2f} GiB"
    )
