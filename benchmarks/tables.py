"""What was measured as Markdown, and a document's tables, made from committed results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Curve, Found, Measured
from lora_jax.files.marked_documents import fill_blocks

RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "bench"
RATIOS = ("what", "ratio", "quartiles", "must be", "may reach")
CURVES = ("of", "over", "from", "to", "exponent", "in theory")


def summary(content: Mapping[str, Any]) -> str:
    """The ratios and exponents of a suite, as documents show them."""
    measured = [Measured.from_json(each) for each in content["groups"]]
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


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
