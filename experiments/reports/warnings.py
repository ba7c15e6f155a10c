"""Write the warnings of a report, and the notes that explain its numbers."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from scipy import stats

from experiments.analysis import collect_runs, parameters, significance, task_evidence
from experiments.analysis.choose_methods import Contest, Method, any_stopped
from experiments.analysis.collect_runs import statuses
from experiments.analysis.pairwise import KINDS, MARKS, Pair
from experiments.reports.sheets import equal, machines, of_diverged, unlike
from lora_jax.messages import count

ROUNDING = 1e-9
"""What a mean of shares may exceed an equal share by."""


def contest_warnings(contest: Contest, family: Sequence[Pair]) -> list[str]:
    """Warnings that a reader needs before trusting a table, the most serious first."""
    said = []
    same = [method.label for method in contest.methods if method.chosen_on == "scored"]
    if same:
        said.append(
            f"settings of {_list(same)} were chosen on the same examples that they are scored on: "
            "scores are too good, and p values too small; more settings make this worse"
        )
    budgets: dict[tuple[int, int, int], list[str]] = {}
    stopped = any_stopped(contest.methods)
    for method in contest.methods:
        steps = method.steps if stopped else 0
        budgets.setdefault((*method.budget, steps), []).append(method.label)
    if len(budgets) > 1:
        texts = [f"{_budget(*budget)} for {_list(who)}" for budget, who in sorted(budgets.items())]
        said.append(f"budgets differ: {'; '.join(texts)}")
    lost = [text for method in contest.methods if (text := _lost_text(method))]
    if lost:
        said.append(
            "some runs began and left no record; their scores are unknown, and the numbers of "
            f"settings and runs tried include them: {'; '.join(lost)}"
        )
    ways = {method.chosen_on for method in contest.methods if method.chosen_on != "nothing"}
    if len(ways) > 1:
        said.append("settings were chosen on held-out examples for some methods but not for others")
    edges = [
        f"{method.label} {method.chosen.rate:g} ({method.edge} tried)"
        for method in contest.methods
        if method.edge and method.chosen is not None
    ]
    if edges:
        said.append(f"better learning rates may lie beyond those tried: {_list(edges, 20)}")
    said += _other_settings_seen(contest)
    for method in contest.methods:
        said += _of_method(method)
    said += _unlike(contest)
    said += _of_draws(contest)
    said += _of_chance(contest)
    if any(run.config.train.select == "best" for m in contest.methods for run in m.runs):
        said.append("each run kept the evaluation that was best on the examples it is scored on")
    reasons: dict[str, list[str]] = {}
    for pair in family:
        if pair.contest is contest and pair.why:
            reasons.setdefault(pair.why, []).append(f"{pair.first.label} and {pair.second.label}")
    said += [f"some tests were not possible ({why}): {_list(who)}" for why, who in reasons.items()]
    return [f"{text[0].upper()}{text[1:]}." for text in said]


def _lost_text(method: Method) -> str:
    """How many runs of a method left no record, by setting, as text; empty if none did."""
    texts = []
    for setting in method.settings:
        if setting.unfinished:
            how = Counter(each.status for each in setting.unfinished)
            counts = ", ".join(f"{count} {status}" for status, count in how.items())
            texts.append(f"{counts} at {method.describe(setting)}")
    return f"{method.label} {' and '.join(texts)}" if texts else ""


def _other_settings_seen(contest: Contest) -> list[str]:
    """A warning if runs with settings other than the chosen one saw the development set.

    It is for methods whose setting is chosen on held-out examples.
    """
    seen = []
    for method in contest.methods:
        if method.phase == "held_out" and not contest.held_out and method.chosen is not None:
            others = [each for each in method.settings if each is not method.chosen]
            counts = Counter[float]()
            for each in others:
                counts[each.rate] += len(each.of("development")) + len(each.lost("development"))
            if total := counts.total():
                rates = ", ".join(f"{rate:g}" for rate, number in counts.items() if number)
                seen.append(f"{method.label} {count(total, 'run')} ({rates})")
    if not seen:
        return []
    return [
        "runs with other settings than the chosen one were scored on the development set, but only "
        f"held-out examples should choose a setting: {'; '.join(seen)}"
    ]


def _unlike(contest: Contest) -> list[str]:
    """A warning if times and memory are, or may be, of different machines or JAX versions."""
    if not (why := unlike(contest)):
        return []
    texts = [f"{_list(labels)} on {machine}" for machine, labels in machines(contest).items()]
    where = f": {'; '.join(texts)}" * (len(texts) > 1)
    return [f"seconds and memory are of {why} and cannot be compared{where}"]


def _of_draws(contest: Contest) -> list[str]:
    """A warning if runs share draws of the training examples, or draws share seeds."""
    numbers = contest.numbers
    each = "each draw counts once, with the mean of its runs" * collect_runs.share_draws(numbers)
    new = "nothing is said of new seeds" * collect_runs.draws_share_seeds(numbers)
    if not each and not new:
        return []
    which = len({draw for _, draw in numbers}), len({seed for seed, _ in numbers})
    said = ", and ".join(filter(None, (each, new)))
    return [
        f"runs are of {count(which[0], 'draw')} of the training examples and of "
        f"{count(which[1], 'seed')}: what is over seeds here is over draws; {said}"
    ]


def _of_chance(contest: Contest) -> list[str]:
    """A warning if no method is better than who always gives the same answer."""
    share = task_evidence.most_frequent(contest)
    means = [fmean(scores) for each in contest.methods if (scores := each.counted())]
    if share is None or not means or max(means) > share + ROUNDING:
        return []
    return [
        f"no mean is above {share:.2f}, the score of who always gives the most frequent answer: "
        "nothing shows that any method learnt this task, and differences may be noise"
    ]


def _of_method(method: Method) -> list[str]:
    said = []
    if method.chosen is None:
        said.append(f"no setting of {method.label} has a completed run, so none is chosen")
    elif not method.runs:
        others = sum(bool(each.of("development")) for each in method.settings)
        more = f" ({others} of its other settings have some)" if others else ""
        said.append(f"the chosen setting of {method.label} has no scored runs{more}")
    diverged, ended = of_diverged(method), statuses(method.runs)
    how = ", ".join(f"{n} {status}" for status, n in ended.items() if status != "diverged")
    if diverged and not method.scores():
        said.append(f"{method.label} has no mean: {diverged}")
    elif diverged:
        said.append(f"the mean of {method.label} is not of completed runs alone: {diverged}")
    elif how and not method.scores():
        said.append(f"no run of {method.label} completed, so it has no mean: {how}")
    if how and method.scores():
        said.append(f"the mean of {method.label} leaves out runs that did not complete: {how}")
    if equal(scores := method.counted()):
        said.append(
            f"all {len(scores)} scores of {method.label} are equal: they have no interval, because "
            "equal scores do not show how much scores vary"
        )
    return said


def _budget(settings: int, runs: int, steps: int) -> str:
    """A budget; its steps are 0 where they go without saying, as all runs have as many."""
    said = f"{count(settings, 'setting')} in {count(runs, 'run')}"
    return f"{said} of {steps:,} steps together" if steps else said


def _list(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explain(
    contests: Sequence[Contest],
    family: Sequence[Pair],
    apart: Sequence[Pair],
    resamples: int,
    referred: bool,
) -> list[str]:
    """Notes on what the numbers are, and what each test generalises to.

    Args:
      family: all pairs that get a verdict.
      apart: pairs of registered studies, which get none.
      referred: whether the report compares methods with a reference.
    """
    notes = [
        "The setting of a method is the one with the best mean score on held-out training "
        "examples, or else on the development set. Of equal settings, the one with the smaller "
        "rate is chosen; a setting that diverged with any seed comes last. Means, standard "
        "deviations and 95% intervals (Student's t) are over the runs of the chosen setting, one "
        "for each seed, or over draws of the training examples that seeds share. A run that "
        "diverged counts with its last score; without one, its method has no number. "
        f"{parameters.NOTE} Seconds are the mean "
        "training time of a run; a trial that shares a program has its share of the time. Memory "
        "is the peak of the process, including all runs that it did before; trials that share a "
        "program have the peak of all of them together."
    ]
    if not family and not apart:
        return notes
    exact = any(contest.metric == "accuracy" for contest in contests)
    notes.append(
        "Tests are paired and two-sided. Over seeds: t-test, or a sign test if all differences are "
        f"equal ({KINDS['seeds']}). Over examples: "
        + ("exact McNemar test for accuracy, else " if exact else "")
        + f"paired bootstrap, {resamples} resamples ({KINDS['examples']}). Over both: t-test with "
        f"the variance of the mean over seeds and examples, which are crossed, and the degrees of "
        f"freedom of Satterthwaite, or with fewer than {significance.TRUSTED} seeds, seeds - 1 "
        f"({KINDS['both']}). {_training_sets(contests)}"
        + " Each interval, and the p beside it, is of one comparison alone."
        * referred
    )
    if apart:
        notes.append(
            "The verdicts of a registered study are those over all its tasks, in its table of "
            "gains. On single tasks it has none: among so many tests, some p are small by chance. "
            "--reference gives verdicts on all pairs of methods, without those of the study."
        )
    if not family:
        return notes
    least = 2 / (resamples + 1)
    by_bootstrap = any(
        pair.decided_by == "examples" and pair.contest.metric != "accuracy" for pair in family
    )
    if by_bootstrap and least * len(family) >= significance.LEVEL:
        notes.append(
            f"With {resamples} resamples, the p of a bootstrap is at least {least:.2g}, which "
            f"cannot be a win in a family of {len(family)}: use more resamples (--resamples)."
        )
    decided = [pair.decided_by for pair in family if pair.decided_by]
    how = ", ".join(f"{decided.count(kind)} over {kind}" for kind in KINDS if kind in decided)
    notes.append(
        "A win or a loss has Holm's p below 0.05, in the table of differences and in the count of "
        "wins. All pairs of methods in all contests are one family of tests. Each pair is decided "
        f"by the widest test that it has ({len(decided)} tests: {how or 'none'}). A tie is a pair "
        "that was not told apart, which does not say that the two are equal. A contest is a model "
        "and a task of a study: a task with two models, or in two studies, is two contests."
    )
    if (errors := least_win(family)) > 10:
        notes.append(
            f"With so few seeds, the first win among {len(decided)} tests needs a difference of "
            f"{errors:.0f} standard errors. If there is no win, more seeds or fewer methods may "
            "change that."
        )
    if "examples" in decided:
        notes.append(
            f"{MARKS['examples']}: decided over examples alone, for example because only one seed "
            "is common. It holds for these trained models, not for their methods."
        )
    if "seeds" in decided:
        notes.append(
            f"{MARKS['seeds']}: decided over seeds alone, because predictions are missing or a "
            "run diverged. It holds for these examples, not for others."
        )
    return notes


def _training_sets(contests: Sequence[Contest]) -> str:
    """What tests say of other training sets: only where several were drawn is there anything."""
    drawn = [len({draw for _, draw in contest.numbers}) > 1 for contest in contests]
    if not any(drawn):
        return "No test covers another training set."
    where = "" if all(drawn) else f" in {sum(drawn)} of {len(drawn)} contests"
    return (
        f"Training sentences are of several draws{where}, so tests over seeds cover other training "
        f"sets drawn from the same examples{' there' * bool(where)}."
    )


def least_win(family: Sequence[Pair]) -> float:
    """The smallest difference, in standard errors, that could be the only win of a family.

    It comes from Student's t distribution, for the most seeds that any deciding test has. It is 0
    if a test over examples decides any pair, or no pair is decided.
    """
    tests = [(pair.decided_by, pair.tests[pair.decided_by]) for pair in family if pair.decided_by]
    seeds = [test.n for kind, test in tests if test is not None and kind != "examples"]
    if len(seeds) < len(tests) or not seeds:
        return 0.0
    return float(stats.t.ppf(1 - significance.LEVEL / 2 / len(tests), max(seeds) - 1))
