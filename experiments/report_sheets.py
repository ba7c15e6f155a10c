"""What a report says in tables: methods, comparisons with a reference, wins, and warnings."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence

from experiments import collect, compare, pairs
from experiments.cells import NONE, number
from experiments.choose import Contest, Method
from experiments.compare import Difference
from experiments.pairs import KINDS, Pair
from experiments.sheets import Sheet

DECIMALS = 2
CHOSEN_ON = {"held-out": "held-out", "scored": "scored", "nothing": NONE}


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the scored runs of a method took: parameters with the head, seconds, bytes."""

    trained: int
    seconds: float
    memory: int


def costs(method: Method) -> Costs | None:
    """Of the completed runs: the most parameters, the mean time, the largest memory."""
    done = [run.record for run in method.runs if run.completed]
    if not done:
        return None
    return Costs(
        max(record.parameters_trained for record in done),
        statistics.fmean(record.seconds for record in done),
        max(record.peak_memory_bytes for record in done),
    )


def interval(method: Method) -> tuple[float, float] | None:
    """The 95% interval of the mean over seeds (Student's t)."""
    scores = list(method.scores().values())
    found = collect.summarise(scores, "mean", "ci95") if len(scores) > 1 else None
    if found is None or found.spread is None:
        return None
    return found.centre - found.spread, found.centre + found.spread


def title(contest: Contest) -> str:
    """The contest and what its scores are of."""
    where = "held-out training examples" if contest.held_out else "development set"
    return f"{contest.title}, {contest.metric.replace('_', ' ')} on the {where}"


def methods(contest: Contest) -> Sheet:
    heads = ["method", "settings tried", "learning rate", "chosen on", "runs", "mean ± sd"]
    heads += ["95% interval", "not completed", "trained", "seconds", "peak memory"]
    rows = [_method(method, contest.metric) for method in contest.methods]
    return Sheet(title(contest), heads, rows)


def _method(method: Method, metric: str) -> list[str]:
    settings, runs = method.budget
    chosen = "none" if method.chosen is None else method.describe(method.chosen)
    chosen += f" ({method.edge})" if method.edge else ""
    scores = list(method.scores().values())
    found = collect.summarise(scores, "mean", "sd") if scores else None
    score = "not run" if found is None else number(found.centre, metric, DECIMALS)
    if found is not None and found.spread is not None:
        score += f" ± {found.spread:.{DECIMALS}f}"
    spent, ends = costs(method), interval(method)
    return [
        method.label,
        f"{settings} ({runs} {'run' if runs == 1 else 'runs'})",
        chosen,
        CHOSEN_ON[method.chosen_on],
        str(len(scores)),
        score,
        NONE if ends is None else _ends(*ends, metric),
        _not_completed(method) or "0",
        NONE if spent is None else f"{spent.trained:,}",
        NONE if spent is None else f"{spent.seconds:.0f}",
        NONE if spent is None else f"{spent.memory / 2**30:.2f} GiB",
    ]


def _not_completed(method: Method) -> str:
    runs = [run for setting in method.settings for run in setting.runs]
    return ", ".join(f"{count} {how}" for how, count in collect.statuses(runs).items())


def _ends(low: float, high: float, metric: str) -> str:
    return f"[{number(low, metric, DECIMALS)}, {number(high, metric, DECIMALS)}]"


def against(contest: Contest, reference: Method, family: Sequence[Pair]) -> Sheet:
    """The methods of a contest less the reference, p values adjusted over the whole family."""
    heads = ["method", "common seeds"]
    for kind in KINDS:
        heads += [f"over {'both' if kind == 'both' else kind}", "p (Holm)"]
    adjusted = {kind: pairs.adjusted(family, kind) for kind in KINDS}
    rows = []
    for index, pair in enumerate(family):
        if pair.contest is contest:
            row = [pair.first.label, str(pair.common)]
            for kind in KINDS:
                test = pair.tests[kind]
                holm = adjusted[kind][index]
                row += [_untested(pair, kind), NONE] if test is None else _test(test, holm)
            rows.append(row)
    unit = "points" if collect.scale(contest.metric) != 1 else contest.metric
    return Sheet(f"{contest.title}: difference from {reference.label}, {unit}", heads, rows)


def _test(test: Difference, holm: float | None) -> list[str]:
    text = f"{test.difference:+.{DECIMALS}f}"
    if test.low is not None and test.high is not None:
        text += f" [{test.low:+.{DECIMALS}f}, {test.high:+.{DECIMALS}f}]"
    return [text, NONE if test.p is None else f"{p_text(test.p)} ({p_text(holm)})"]


def _untested(pair: Pair, kind: str) -> str:
    if pair.common == 0:
        return "no common seed"
    return "one seed" if pair.common == 1 and kind != "examples" else "not measured"


def p_text(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def wins(family: Sequence[Pair]) -> Sheet:
    """How often the method of a row is above that of a column, not to be told from it, below it."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    labels: dict[str, str] = {}
    turned = {"win": "loss", "loss": "win"}
    for pair, verdict in zip(family, pairs.verdicts(family), strict=True):
        first, second = pair.first.key, pair.second.key
        labels |= {first: pair.first.label, second: pair.second.label}
        counts.setdefault(first, {}).setdefault(second, Counter())[verdict] += 1
        other = turned.get(verdict, verdict)
        counts.setdefault(second, {}).setdefault(first, Counter())[other] += 1

    def text(count: Counter[str]) -> str:
        three = [count["win"], count["tie"], count["loss"]]
        return "-".join(map(str, three)) if sum(three) else "not measured"

    rows = []
    for key, label in labels.items():
        total = sum(counts[key].values(), Counter())
        cells = [NONE if o == key else text(counts[key].get(o, Counter())) for o in labels]
        rows.append([label, text(total), *cells])
    tasks = len({id(pair.contest) for pair in family})
    name = f"Wins-ties-losses of rows against columns, {tasks} {'task' if tasks == 1 else 'tasks'}"
    return Sheet(name, ["method", "all", *labels.values()], rows)


def warnings(contest: Contest, family: Sequence[Pair]) -> list[str]:
    """What a reader must know before believing a table, the worst first."""
    said = []
    same = [method.label for method in contest.methods if method.chosen_on == "scored"]
    if same:
        said.append(
            f"settings of {_list(same)} were chosen on the very examples that they are scored on: "
            "scores are too high, the more so the more settings were tried, and p values too small"
        )
    budgets: dict[tuple[int, int], list[str]] = {}
    for method in contest.methods:
        budgets.setdefault(method.budget, []).append(method.label)
    if len(budgets) > 1:
        texts = [f"{_count(*budget)} for {_list(who)}" for budget, who in sorted(budgets.items())]
        said.append(f"budgets differ: {'; '.join(texts)}")
    ways = {method.chosen_on for method in contest.methods if method.chosen_on != "nothing"}
    if len(ways) > 1:
        said.append("settings were chosen on held-out examples for some methods, not for others")
    edges = [
        f"{method.label} {method.chosen.rate:g} ({method.edge} tried)"
        for method in contest.methods
        if method.edge and method.chosen is not None
    ]
    if edges:
        said.append(f"better learning rates may lie beyond those tried: {_list(edges, 20)}")
    for method in contest.methods:
        said += _of_method(method)
    if any(
        run.record.config["train"]["select"] == "best" for m in contest.methods for run in m.runs
    ):
        said.append("each run kept its best evaluation by the examples that it is scored on")
    reasons: dict[str, list[str]] = {}
    for pair in family:
        if pair.contest is contest and pair.why:
            reasons.setdefault(pair.why, []).append(f"{pair.first.label} and {pair.second.label}")
    said += [f"not everything could be tested, {why}: {_list(who)}" for why, who in reasons.items()]
    return [f"{text[0].upper()}{text[1:]}." for text in said]


def _of_method(method: Method) -> list[str]:
    said = []
    if method.chosen is None:
        said.append(f"no setting of {method.label} has a completed run to choose it by")
    elif not method.runs:
        others = sum(bool(each.development) for each in method.settings)
        more = f"; other settings, {others}, have some" if others else ""
        said.append(f"the chosen setting of {method.label} has no run that is scored{more}")
    ended = collect.statuses(method.runs)
    if ended:
        how = ", ".join(f"{count} {status}" for status, count in ended.items())
        said.append(f"{method.label}'s mean leaves out scored runs that did not complete: {how}")
    return said


def _count(settings: int, runs: int) -> str:
    first = "setting" if settings == 1 else "settings"
    return f"{settings} {first} in {runs} {'run' if runs == 1 else 'runs'}"


def _list(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explain(
    contests: Sequence[Contest], beside: Sequence[Pair], family: Sequence[Pair], resamples: int
) -> list[str]:
    """What the numbers are, and what each test generalises to."""
    notes = [
        "Settings are chosen by their mean score over runs on held-out training examples, where "
        "there are any (the smaller learning rate of equal ones; what diverged with any seed comes "
        "after all others). Means, standard deviations and 95% intervals (Student's t) are over "
        "the completed runs of the chosen setting, one a seed. Trained parameters are with the "
        "head; seconds are those of training, a run's mean; memory is the process's peak, of all "
        "runs that it had done by then."
    ]
    if not beside:
        return notes
    exact = any(contest.metric == "accuracy" for contest in contests)
    counts = [sum(pair.tests[kind] is not None for pair in beside) for kind in KINDS]
    notes.append(
        f"Tests are paired and two-sided. Over seeds: t-test ({KINDS['seeds']}). Over examples: "
        + ("exact McNemar test for accuracy, else " if exact else "")
        + f"paired bootstrap, {resamples} resamples ({KINDS['examples']}). Over both: t-test with "
        f"the variances of seeds and of examples added ({KINDS['both']}). None covers another "
        "training set. Intervals are of one comparison; p values in brackets are Holm's, each "
        f"column a family of its own ({', '.join(map(str, counts))} tests over all tasks)."
    )
    least = 2 / (resamples + 1)
    if least * len(family) >= compare.LEVEL:
        notes.append(
            f"With {resamples} resamples no bootstrap's p is below {least:.2g}, which in a family "
            f"of {len(family)} is no win: take more (--resamples)."
        )
    decided = [pair.decided_by for pair in family if pair.decided_by]
    how = ", ".join(f"{decided.count(kind)} over {kind}" for kind in KINDS if kind in decided)
    notes.append(
        "A win or loss has Holm's p below 0.05 in the one family of all pairs of methods and tasks "
        f"({len(decided)} tests: {how or 'none'}); what is over examples alone holds for the "
        "trained models, not for their methods."
    )
    return notes
