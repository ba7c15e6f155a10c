"""The parts of a soak: each does its work, keeps its results, and gives a table."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.soaking import (
    damage,
    forked,
    inputs,
    kills,
    not_finite,
    result_file,
    surroundings,
)
from experiments.soaking.subjects import subjects as subjects_of
from lora_jax.suggest import require_known


@dataclasses.dataclass(frozen=True)
class Order:
    """What a soak is to do."""

    out: Path
    scratch: Path
    seed: int
    kills: int
    flips: int
    examples: int
    commands: tuple[str, ...] = ()
    """Those that are killed; all if there are none."""
    files: tuple[str, ...] = ()
    """The subjects that are damaged; all if there are none."""

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


def require_names(order: Order) -> None:
    """Raise a ValueError for a command or files that no part has; nothing is made or trained."""
    for name in order.commands:
        known = [each.name for each in _works(order)]
        require_known(name, known, f"--commands={name}: no such command")
    for name in order.files:
        known = [each.name for each in _subjects(order)]
        require_known(name, known, f"--files={name}: no such files")


def _works(order: Order) -> list[kills.Work]:
    return kills.works(inputs.Inputs(order.scratch / "inputs"), order.scratch / "finished")


def _subjects(order: Order) -> list[damage.Subject]:
    given, finished = inputs.Inputs(order.scratch / "inputs"), order.scratch / "finished"
    return subjects_of(given, finished, _scratch_of_damage(order) / "sources", order.environment)


def _scratch_of_damage(order: Order) -> Path:
    return order.scratch / f"damage-{'-'.join(order.files)}"


def _inputs(order: Order) -> inputs.Inputs:
    """The model and the data, made once for all parts."""
    made = inputs.Inputs(order.scratch / "inputs")
    return made if made.model.exists() else inputs.make(made.folder)


def _finished(order: Order, given: inputs.Inputs) -> Path:
    """A finished run, trained once for all parts."""
    folder = order.scratch / "finished"
    if not (folder / "record.json").exists():
        ended = forked.run(inputs.train(given, folder), order.environment)
        if ended.code:
            raise RuntimeError(f"the tiny run fails: {ended.err}")
    return folder


def _kills(order: Order) -> Done:
    works, settings = _works(order), {"kills": order.kills, "seed": order.seed}
    before = {
        work.name: result_file.read(order.out, f"kills-{work.name}", settings)
        for work in works
        if not order.commands or work.name in order.commands
    }
    _finished(order, _inputs(order))
    found: list[kills.Round] = []
    for work, count in zip(works, divided(order.kills, [w.share for w in works]), strict=True):
        if work.name not in before:
            continue
        name = f"kills-{work.name}"
        mine = [kills.Round.of_row(each) for each in before[work.name]]
        own = count, order.seed, order.scratch / name, order.environment
        for each in kills.soak(work, *own, before=tuple(mine)):
            mine.append(each)
            result_file.write(order.out, name, settings, [dataclasses.asdict(r) for r in mine])
        found += mine
    columns = ("work", "kills", "by_time", "by_change", "of_worker", "rounds", "missed")
    return Done(result_file.table(kills.counts(found), columns), kills.wrong(found))


def _damage(order: Order) -> Done:
    subjects, settings = _subjects(order), {"flips": order.flips, "seed": order.seed}
    before = {
        each.name: result_file.read(order.out, f"damage-{each.name}", settings)
        for each in subjects
        if not order.files or each.name in order.files
    }
    _finished(order, _inputs(order))
    scratch = _scratch_of_damage(order)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    os.environ.update(order.environment)  # this process goes on with runs, and finds programs there
    counts = divided(order.flips, [each.share for each in subjects])
    found = []
    for subject, count in zip(subjects, counts, strict=True):
        if subject.name not in before:
            continue
        name = f"damage-{subject.name}"
        mine = [damage.Damage(**each) for each in before[subject.name]]
        if not mine:
            mine = damage.soak(subject, count, order.seed, scratch / "tried")
            kept = [dataclasses.asdict(each) for each in mine]
            result_file.write(order.out, name, settings, kept)
        found += mine
    table = result_file.table(damage.counts(found), ("files", "tried", "cut", *damage.OUTCOMES))
    return Done(table, damage.wrong(found))


def _surroundings(order: Order) -> Done:
    before = result_file.read(order.out, "surroundings", {})  # others' results are not replaced
    found = [surroundings.Met(**each) for each in before]
    if not surroundings.complete(found):
        given = _inputs(order)
        finished, scratch = _finished(order, given), order.scratch / "surroundings"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        found = []
        for each in surroundings.soak(given, finished, scratch, order.environment):
            found.append(each)
            rows = [dataclasses.asdict(met) for met in found]
            result_file.write(order.out, "surroundings", {}, rows)
    table = result_file.table([dataclasses.asdict(each) for each in found], ("case", "outcome"))
    return Done(table, surroundings.wrong(found))


def _not_finite(order: Order) -> Done:
    rows = result_file.read(order.out, "not_finite", {})
    if not rows:
        scratch = order.scratch / "not_finite"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        rows = [dataclasses.asdict(each) for each in not_finite.soak(_inputs(order), scratch)]
        result_file.write(order.out, "not_finite", {}, rows)
    found = [not_finite.Planted(**each) for each in rows]
    return Done(result_file.table(rows, ("where", "number", "outcome")), not_finite.wrong(found))


def _malformed(order: Order) -> Done:
    from experiments.soaking import malformed  # it needs hypothesis

    settings = {"examples": order.examples, "seed": order.seed}
    rows = result_file.read(order.out, "malformed", settings)
    if not rows:
        tried = malformed.soak(order.examples, order.seed)
        bad = [each for each in tried if each.outcome in ("unclear", "executed")]
        rows = [*malformed.counts(tried), *(dataclasses.asdict(each) for each in bad)]
        result_file.write(order.out, "malformed", settings, rows)
    counts = [each for each in rows if "tried" in each]
    found = [malformed.Tried(**each) for each in rows if "tried" not in each]
    columns = ("kind", "tried", "taken", "refused", "unclear", "executed")
    return Done(result_file.table(counts, columns), malformed.wrong(found))


def divided(count: int, shares: Sequence[int]) -> list[int]:
    """A number divided by shares; the parts add up to it."""
    ends = [count * sum(shares[:place]) // sum(shares) for place in range(len(shares) + 1)]
    return [end - begin for begin, end in itertools.pairwise(ends)]


PARTS: Mapping[str, Callable[[Order], Done]] = {
    "kills": _kills,
    "damage": _damage,
    "surroundings": _surroundings,
    "not_finite": _not_finite,
    "malformed": _malformed,
}
"""The parts by name, in the order in which they are done."""
