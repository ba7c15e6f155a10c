"""The files of a suite's results: JSON, Markdown and a picture."""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import results, tables
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.results import Measured
from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically


def content(suite: str, plan: Plan, found: Sequence[Measured]) -> dict[str, Any]:
    """All that was measured, with the machine that it was measured on, as JSON."""
    groups = [dataclasses.asdict(each) for each in found]
    head = {"suite": suite, **dataclasses.asdict(plan), "machine": results.machine()}
    return {**head, "groups": groups}


def write(folder: Path, suite: str, plan: Plan, found: Sequence[Measured]) -> None:
    """Write the three files of a suite; without matplotlib, there is no picture.

    Groups that are in the folder already, timed in the same way, on the same machine and with the
    same versions, stay there: a suite may be timed in pieces.
    """
    whole = content(suite, plan, found)
    names = {each.name for each in found}
    found = [*(each for each in _before(folder, whole) if each.name not in names), *found]
    whole = content(suite, plan, found)
    write_atomically(folder / f"{suite}.json", f"{json.dumps(whole, indent=1)}\n".encode())
    write_atomically(folder / f"{suite}.md", tables.document(whole).encode())
    if importlib.util.find_spec("matplotlib") is None:
        return
    from experiments.benchmarks import plot  # with matplotlib, which is slow to import

    picture = plot.draw(found, f"{suite}, {plan.turns} turns")
    if picture is not None:
        write_atomically(folder / f"{suite}.png", picture)


def require_kept(folder: Path, suite: str, plan: Plan) -> None:
    """Raise a ValueError if a folder has results of the suite that new ones would replace.

    They were timed in another way, on another machine, or against more sides.
    """
    path = folder / f"{suite}.json"
    if not path.exists():
        return
    old, new = json_text.read_object(path), json.loads(json.dumps(content(suite, plan, [])))
    there, here = _conditions(old), _conditions(new)
    for key in sorted(there | here):
        if there.get(key) != here.get(key):
            raise ValueError(
                f"{path} was timed with another {key}: name another --out, or delete it"
            )
    if lost := sorted({*old["against"]} - {*plan.against}):
        raise ValueError(
            f"{path} is against {lost[0]}, too: name another --out, or add it to --against"
        )


def _before(folder: Path, whole: Mapping[str, Any]) -> list[Measured]:
    """The groups of an earlier file that were measured as those of `whole` are."""
    path = folder / f"{whole['suite']}.json"
    if not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    same = _conditions(old) == json.loads(json.dumps(_conditions(whole)))
    return [Measured.from_json(each) for each in old["groups"]] if same else []


def _conditions(whole: Mapping[str, Any]) -> dict[str, Any]:
    """What the groups of one file have in common."""
    machine = {name: whole["machine"].get(name) for name in ("processor", "cores", "versions")}
    free = ("groups", "cases", "against")
    return {
        **{name: value for name, value in whole.items() if name not in free},
        "machine": machine,
    }
