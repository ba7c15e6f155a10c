"""The parts of a soak: each does its work, keeps its results, and gives a table."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.soaking import forked, inputs, kills, result_file


@dataclasses.dataclass(frozen=True)
class Order:
    """What a soak is to do."""

    out: Path
    scratch: Path
    seed: int
    kills: int
    flips: int
    examples: int

    @property
    def environment(self) -> dict[str, str]:
        """Of the commands: caches of their own, which keep all programs."""
        return {
            "XDG_CACHE_HOME": str(self.scratch / "caches"),
            "JAX_COMPILATION_CACHE_DIR": str(self.scratch / "caches" / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }


@dataclasses.dataclass(frozen=True)
class Done:
    """What a part has found."""

    table: str
    wrong: list[str]
    """One line for each loss, silent change or unclear message."""


def _inputs(order: Order) -> inputs.Inputs:
    """The model and the data, made once for all parts."""
    made = inputs.Inputs(order.scratch / "inputs")
    return made if made.model.exists() else inputs.make(made.folder)


def _finished(order: Order, given: inputs.Inputs) -> Path:
    """A finished run, trained once for all parts."""
    folder = order.scratch / "finished"
    if not folder.exists():
        ended = forked.run(inputs.train(given, folder), order.environment)
        if ended.code:
            raise RuntimeError(f"the tiny run fails: {ended.err}")
    return folder


def _kills(order: Order) -> Done:
    settings = {"kills": order.kills, "seed": order.seed}
    found = {
        each["work"]: kills.Killed(**each)
        for each in result_file.read(order.out, "kills", settings)
    }
    given = _inputs(order)
    works = kills.works(given, _finished(order, given))
    shares = sum(work.share for work in works)
    left = order.kills
    for place, work in enumerate(works):
        last = place == len(works) - 1
        count = left if last else min(left, max(1, order.kills * work.share // shares))
        left -= count
        scratch = order.scratch / f"kills-{place}"
        earlier = found.get(work.name)
        for now in kills.soak(work, count, order.seed, scratch, order.environment, earlier):
            found[work.name] = now
            rows = [dataclasses.asdict(each) for each in found.values()]
            result_file.write(order.out, "kills", settings, rows)
    rows = [dataclasses.asdict(each) for each in found.values()]
    columns = ("work", "kills", "by_time", "by_change", "of_worker", "rounds", "missed")
    wrong = [f"{each.work}, {line}" for each in found.values() for line in each.wrong]
    return Done(result_file.table(rows, columns), wrong)


PARTS: Mapping[str, Callable[[Order], Done]] = {
    "kills": _kills,
}
"""The parts by name, in the order in which they are done."""
