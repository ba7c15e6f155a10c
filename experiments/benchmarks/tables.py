"""What was measured as Markdown, and a document's tables, made from committed results."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.results import Curve, Found, Measured
from experiments.marked_documents import fill_blocks

RESULTS = Path(__file__).parents[1] / "results" / "bench"
RATIOS = ("what", "ratio", "quartiles", "must be", "may reach")
CURVES = ("of", "over", "from", "to", "exponent", "in theory")


def document(content: Mapping[str, Any]) -> str:
    """The whole result of a suite."""
    machine, measured = content["machine"], _measured(content)
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['device']['kind']}"
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    size = " at the size `smoke`, which says nothing about speed" if content["smoke"] else ""
    parts = [
        f"# `--suite={content['suite']}`{size}",
        f"{content['turns']} turns on {where}; {versions}.",
        summary(content),
        "## Times and facts",
        _table(_quantities(measured)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(content: Mapping[str, Any]) -> str:
    """The ratios and exponents of a suite, as documents show them."""
    measured = _measured(content)
    ratios = [[each.name, *_ratio(found)] for each in measured for found in each.ratios]
    curves = [_curve(curve) for each in measured for curve in each.curves]
    tables = []
    if ratios:
        tables.append(_table([["group", *RATIOS], *ratios]))
    if curves:
        tables.append(_table([list(CURVES), *curves]))
    return "\n\n".join(tables)


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every table between markers made from the file of its suite.

    The markers are `<!-- bench: train -->` and `<!-- /bench -->`.

    Raises:
      FileNotFoundError: a suite has no file.
    """

    def table(name: str) -> str:
        return summary(json.loads((results / f"{name}.json").read_text(encoding="utf-8")))

    return fill_blocks(text, "bench", table)


def _measured(content: Mapping[str, Any]) -> list[Measured]:
    return [Measured.from_json(each) for each in content["groups"]]


def _ratio(found: Found) -> list[str]:
    if found.must is None or found.reach is None:
        goal = ["", ""]
    else:
        sign = "≥" if found.reach > found.must else "≤"
        goal = [f"{sign} {found.must:g}{'' if found.met else ', missed'}", f"{found.reach:g}"]
    spread = "" if found.low == found.high else f"{found.low:.2f} to {found.high:.2f}"
    close = found.met is False and f"{found.middle:.2f}" == f"{found.must:.2f}"
    return [found.what, f"{found.middle:.{4 if close else 2}f}", spread, *goal]


def _curve(curve: Curve) -> list[str]:
    ends = [f"{curve.at[0]:,g}", f"{curve.at[-1]:,g}"]
    return [curve.of, curve.over, *ends, f"{curve.exponent:.2f}", f"{curve.allowed:.2f}"]


def _quantities(measured: Iterable[Measured]) -> list[list[str]]:
    """A row for each contender: its times, and its facts."""
    measured = list(measured)
    names = dict.fromkeys(
        name for each in measured for facts in each.facts.values() for name in facts
    )
    rows = [["group", "contender", "least ms", "median ms", *map(_heading, names)]]
    for each in measured:
        for contender in each.contenders:
            seconds = each.seconds.get(contender, [])
            times = [min(seconds), statistics.median(seconds)] if seconds else []
            cells = [f"{1000 * value:,.1f}" for value in times] or ["", ""]
            facts = each.facts.get(contender, {})
            cells += [_fact(name, facts[name]) if name in facts else "" for name in names]
            rows.append([each.name, contender, *cells])
    return rows


def _heading(name: str) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} MiB"
    return "GFLOP" if name == "flops" else name.replace("_", " ")


def _fact(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f}"
    return f"{value / 1e9:,.2f}" if name == "flops" else f"{value:,.4g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
