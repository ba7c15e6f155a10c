"""A report as numbers, for other programs: a line a method, and a line a test of two methods."""

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments import collect, pairs, report_sheets
from experiments.choose import Contest, Method
from experiments.pairs import KINDS, Pair

HEADS: tuple[str, ...] = ("line", "table", "model", "task", "metric", "scored_on", "method")
HEADS += ("label", "settings_tried", "runs_tried", "chosen", "learning_rate", "edge", "chosen_on")
HEADS += ("n", "mean", "sd", "low", "high", "diverged", "failed", "parameters_trained", "seconds")
HEADS += ("peak_memory_bytes", "other", "common", "test", "generalises_to", "difference", "p")
HEADS += ("p_holm", "family", "verdict", "note")
"""`line` is `method` or `test`; what a line has not stays empty. `low` and `high` are those of the
95% interval of the mean, or of the difference `method` less `other`."""


def lines(made: Sequence[Contest], beside: Sequence[Pair], family: Sequence[Pair]) -> str:
    """All of it.

    Args:
      beside: the pairs with the reference, of which every kind of test is a family.
      family: all pairs, of which the deciding tests are one.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADS, lineterminator="\n")
    writer.writeheader()
    for contest in made:
        writer.writerows(_method(contest, method) for method in contest.methods)
    for kind in KINDS:
        name = f"reference, over {kind}"
        writer.writerows(_tests(beside, [kind] * len(beside), name, [""] * len(beside)))
    kinds = [pair.decided_by for pair in family]
    writer.writerows(_tests(family, kinds, "all pairs", pairs.verdicts(family)))
    return text.getvalue()


def _place(contest: Contest, method: Method) -> dict[str, Any]:
    return {
        "table": contest.table,
        "model": contest.model,
        "task": contest.task,
        "metric": contest.metric,
        "scored_on": "held-out" if contest.held_out else "development",
        "method": method.key,
        "label": method.label,
    }


def _method(contest: Contest, method: Method) -> dict[str, Any]:
    scores = list(method.scores().values())
    spent, ends = report_sheets.costs(method), report_sheets.interval(method)
    ended = collect.statuses(run for each in method.settings for run in each.runs)
    settings, runs = method.budget
    return {
        "line": "method",
        **_place(contest, method),
        "settings_tried": settings,
        "runs_tried": runs,
        "chosen": method.chosen and method.describe(method.chosen),
        "learning_rate": method.chosen and method.chosen.rate,
        "edge": method.edge,
        "chosen_on": method.chosen_on,
        "n": len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "low": ends and ends[0],
        "high": ends and ends[1],
        "diverged": ended.get("diverged", 0),
        "failed": ended.get("failed", 0),
        "parameters_trained": spent and spent.trained,
        "seconds": spent and spent.seconds,
        "peak_memory_bytes": spent and spent.memory,
    }


def _tests(
    family: Sequence[Pair], kinds: Sequence[str], name: str, verdicts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    one = kinds[0] if len(set(kinds)) == 1 else ""
    adjusted = pairs.adjusted(family, one)
    for pair, kind, holm, verdict in zip(family, kinds, adjusted, verdicts, strict=True):
        test = pair.tests.get(kind)
        yield {
            "line": "test",
            **_place(pair.contest, pair.first),
            "other": pair.second.key,
            "common": pair.common,
            "test": kind or "not measured",
            "generalises_to": KINDS.get(kind),
            "n": test and test.n,
            "difference": test and test.difference,
            "low": test and test.low,
            "high": test and test.high,
            "p": test and test.p,
            "p_holm": holm,
            "family": name,
            "verdict": verdict,
            "note": pair.why if test is not None else f"not measured: {pair.why}",
        }
