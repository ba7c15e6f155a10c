"""Show a `Fit` as tables and sentences."""

from rich.console import Group
from rich.table import Table

from experiments.planning.memory_fit import Fit
from experiments.planning.topologies import GIB
from experiments.plurals import count
from lora_jax.sharding.mesh import AXES

SIMULATION_NOTE = (
    "Temporaries and collectives are those of a program for the CPU, which keeps\n"
    "float32 where a TPU's or GPU's has bfloat16: take them as a rough guide."
)


def show(found: Fit) -> Group:
    """Show the memory, FLOPs and collectives of a step, and whether it fits."""
    parts = [heading(found), memory(found), flops(found)]
    if found.collectives:
        parts.append(moved(found))
    parts.append(verdict(found))
    return Group(*parts)


def heading(found: Fit) -> str:
    """The devices, the mesh and the batch, a line for each."""
    chosen, sizes = found.topology, dict(zip(AXES, found.mesh, strict=True))
    mesh = " x ".join(f"{name} {size}" for name, size in sizes.items())
    compiled = "ahead of time" if chosen.ahead else "on simulated devices of the CPU"
    return "\n".join(
        (
            f"{chosen}: {count(chosen.devices, 'device')} of "
            f"{chosen.capacity / GIB:.2f} GiB, compiled {compiled}",
            f"mesh: {mesh}",
            f"batch: {rows(found)}",
        )
    )


def rows(found: Fit) -> str:
    """The rows of a batch, and how shards and accumulation make them up."""
    shards = found.mesh[0] * found.mesh[1]
    batch = found.rows * shards * found.accumulate
    times = f"; {found.accumulate} times" if found.accumulate > 1 else ""
    parts = f"{count(shards, 'shard')} by data x fsdp"
    each = f"{count(found.rows, 'row')} a shard, {parts}{times}"
    own = ""
    if found.asked not in (0, batch):
        own = f"\n  not the config's {found.asked}: train with --config.train.batch_size={batch}"
    return f"{batch} x {found.tokens} tokens a step ({each}){own}"


def memory(found: Fit) -> Table:
    """A table of the memory of one device, with a row for each part."""
    made = Table("", title_justify="left")
    made.add_column("GiB a device", justify="right")
    parts = {
        "weights": found.arrays.weights,
        "adapters" if found.flops.frozen else "trained": found.arrays.adapters,
        "optimiser": found.arrays.optimizer,
        "other": found.arrays.other,
        "temporaries": found.temporaries,
        "program": found.code if found.temporaries is not None else None,
    }
    saves = None if found.total is None else found.total + found.saving
    whole = {
        "total": found.total,
        "while it saves": saves,
        "while it loads": found.loading,
        "capacity": found.topology.capacity,
    }
    for name, each in parts.items():
        made.add_row(name, _gib(each), end_section=name == "program")
    for name, each in whole.items():
        made.add_row(name, _gib(each))
    return made


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def flops(found: Fit) -> str:
    """The FLOPs for one token: of the step, and of recomputed layers."""
    each = found.flops
    kinds = {"4N of frozen weights": each.frozen, "6n of trained": each.trained}
    said = " + ".join(f"{value:.3g} ({name})" for name, value in kinds.items() if value)
    again = f"\n  and {each.recomputed:.3g} to recompute layers" if each.recomputed else ""
    return f"FLOPs a token, by analysis: {each.frozen + each.trained:.3g}\n  = {said}{again}"


def moved(found: Fit) -> str:
    """The collectives of the program, in one line."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.collectives.items()))
    return f"collectives: {kinds} (the layers' loop once)"


def verdict(found: Fit) -> str:
    """One sentence on whether the step fits, and a caution if devices were simulated."""
    took = f"compiled in {found.seconds:.0f} s" if found.seconds else "not compiled"
    simulated = "" if found.topology.ahead or found.total is None else f"\n{SIMULATION_NOTE}"
    if not found.fits or found.total is None:
        return f"{found.why_not} ({took}){simulated}"
    share = found.total / found.topology.capacity
    return f"Fits, in {share:.0%} of a device's memory ({took}).{simulated}"


def short(found: Fit) -> str:
    """A fit in one short line."""
    mesh = ",".join(map(str, found.mesh))
    total = (found.total or 0) / GIB
    return (
        f"{found.topology}, --mesh={mesh}: {total:.2f} of {found.topology.capacity / GIB:.2f} GiB"
    )
