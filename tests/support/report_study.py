"""A small study of three methods that never was, and what reports make of it."""

import csv
import io

import numpy as np
from fake_records import planted

from experiments.analysis import choose_methods, pairwise, recorded_runs
from experiments.reports import warnings
from experiments.reports.document import Document
from experiments.reports.tables import config_tables

RATES = (3e-4, 1e-3, 3e-3)
LABELS = np.tile([0, 1], 100)
HELD = np.tile([0, 1, 1], 20)


def wrong(share, seed, n=200):
    """The share of n examples that a run gets wrong, as a mask."""
    return np.random.default_rng(seed).permutation(n) < round(share * n)


def tuning(folder, method, rate, share, seed=100, **how):
    """A run that was scored on held-out examples."""
    changes = {"data.validation": len(HELD), **how.pop("changes", {})}
    mask = wrong(share, seed, len(HELD))
    return planted(folder, method, seed, HELD, mask, rate=rate, changes=changes, **how)


def tuned(root, method, shares, finals, best, **how):
    """A study's runs of one method: a rate each with its error, then seeds with the best rate."""
    for rate, share in zip(RATES, shares, strict=False):
        tuning(root / method / f"{rate}", method, rate, share, **how)
    for seed, share in enumerate(finals):
        mask = wrong(share, seed)
        planted(root / method / str(seed), method, seed, LABELS, mask, rate=best, **how)


def made(root, varies=()):
    return choose_methods.contests(
        recorded_runs.find(root),
        config_tables.titles(config_tables.tables()),
        varies,
        recorded_runs.find_unfinished(root),
    )


def methods(root, **how):
    (contest,) = made(root, **how)
    return {method.key: method for method in contest.methods}


def said(root):
    contests = made(root)
    family = [pair for contest in contests for pair in pairwise.pairs(contest, 200, 0)]
    return " ".join(t for contest in contests for t in warnings.contest_warnings(contest, family))


def rendered(contests, form, reference=None, notes=(), resamples=10_000, **how):
    """The report of contests in a format; `how` goes to `Document.render`."""
    return Document(contests, reference, resamples=resamples).render(form, notes, **how)


def lines(root, **choice):
    return list(csv.DictReader(io.StringIO(rendered(made(root), "csv", **choice))))


def make_study(root):
    """LoRA is best at the middle rate, DoRA at the highest; DoRA is better, VeRA much worse."""
    tuned(root, "lora", (0.3, 0.2, 0.25), (0.20, 0.22, 0.21), 1e-3, parameters=331_776)
    tuned(root, "dora", (0.3, 0.25, 0.2), (0.17, 0.19, 0.21), 3e-3, parameters=340_000)
    tuned(root, "vera", (0.5, 0.4, 0.45), (0.45, 0.44, 0.46), 1e-3, parameters=6_000)
    return root
