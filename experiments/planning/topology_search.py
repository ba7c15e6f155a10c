"""Search for the smallest topology that a training step fits on, and the largest batch."""

import math
from collections.abc import Callable

from configs.settings import RunConfig
from experiments.planning.memory_fit import Fit, fit
from experiments.planning.topologies import Topology, listed
from experiments.plurals import count

MOST_SIMULATED = 64
"""The most devices that a search simulates."""
MOST_ROWS = 4096
TRIES = 8
"""The most programs that the search for a batch compiles."""


def smallest(config: RunConfig, known: Fit, say: Callable[[str], None]) -> Fit | None:
    """The smallest listed topology of the same kind that fits the same rows a shard, or None.

    Its mesh is that of `known` for the same topology, else that of `mesh_like`. Simulated
    topologies with more than MOST_SIMULATED devices are not tried. If no listed one fits, but
    `known` does, `known` is returned.

    Args:
      known: the fit that has been found already.
      say: called with a text before each compilation, which takes time.
    """
    for chosen in listed(known.topology.kind):
        if chosen == known.topology:
            found = known
        elif chosen.ahead or chosen.devices <= MOST_SIMULATED:
            say(f"compiling for {chosen}")
            found = fit(config, chosen, mesh_like(known.mesh, chosen), known.rows)
        else:
            continue
        if found.fits:
            return found
    return known if known.fits else None


def mesh_like(mesh: tuple[int, ...], chosen: Topology) -> tuple[int, ...]:
    """Sizes of data, fsdp and tensor for another number of devices.

    data is 1. tensor is the greatest common divisor of the old size and the number of devices. fsdp
    takes the rest.
    """
    tensor = math.gcd(mesh[2], chosen.devices)
    return 1, chosen.devices // tensor, tensor


def largest_batch(
    config: RunConfig, known: Fit, say: Callable[[str], None]
) -> tuple[Fit | None, bool]:
    """The fit with the most rows a shard, and whether one more row is known not to fit.

    Memory grows by about the same amount with every row. Once two programs fit, a line through
    them gives the next number of rows to try. If these do not fit, the search tries fewer and
    fewer.
    """
    fits = {known.rows: known} if known.fits else {}
    least = MOST_ROWS + 1 if known.fits else known.rows  # this many do not fit
    misses = 0
    for _ in range(TRIES):
        best = max(fits, default=0)
        if least - best <= 1:
            break
        rows = _next(fits, best, least, misses)
        say(f"compiling with {count(rows, 'row')} a shard")
        found = fit(config, known.topology, known.mesh, rows)
        if found.fits:
            fits[rows], misses = found, 0
        else:
            least, misses = rows, misses + 1
    best = max(fits, default=0)
    return fits.get(best), best < MOST_ROWS and least - best <= 1


def _next(fits: dict[int, Fit], best: int, least: int, misses: int) -> int:
    """The number of rows to try next: more than `best`, which fits, and fewer than `least`."""
    if len(fits) < 2:
        wanted = 2 * best if least > MOST_ROWS else (best + least) // 2
    else:
        one, two = sorted(fits)[-2:]
        low, high = (fits[rows].total or 0 for rows in (one, two))
        capacity = fits[two].topology.capacity
        slope = max((high - low) / (two - one), 1.0)
        # With few rows, memory may not grow at all.
        wanted = min(int(two + (capacity - high) / slope), 16 * best)
        if misses:
            halfway = math.isqrt(best * least) if misses > 1 and least > 2 * best else least
            wanted = min(wanted, halfway, least - 2 ** (misses - 1))
    return max(best + 1, min(wanted, least - 1, MOST_ROWS))
