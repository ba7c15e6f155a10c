"""The grid of learning rates of a study, and the rule by which it grows.

A method's grid lies around the middle rate that its file suggests. If the best rate of any method
of a task lies at an edge, every method gets the next rate on that side, so that all have as many.
"""

from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis.recorded_runs import mean_score, saved_metrics
from experiments.studies.protocol import Rates
from lora_jax.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.records.run_record import Record


def rate(middle: float, place: int, per_decade: int) -> float:
    """The rate some steps of the grid above (or below) the middle, with two digits."""
    return float(f"{middle * 10 ** (place / per_decade):.1e}")


def first(rates: Rates) -> range:
    """The places of the grid that every method tries in any case; 0 is the middle."""
    return range(-rates.around, rates.around + 1)


def grown(places: Sequence[int], best: Iterable[int], rates: Rates) -> range:
    """The places after the best ones of all methods are known; the same if none is at an edge.

    Args:
      places: those that have been tried, without gaps.
      best: that of each method.
    """
    low, high = min(places), max(places)
    most, found = rates.around + rates.most_more, set(best)
    return range(low - (low in found and low > -most), high + 1 + (high in found and high < most))


def saved_scores(records: Iterable[Record]) -> list[float]:
    """The scores of the adapters that runs saved, as tables and reports have them."""
    known = [saved_metrics(each).get(each.metric) for each in records]
    return [score for score in known if score is not None]


def best_place(tried: Mapping[int, Sequence[Record]]) -> int | None:
    """The place with the best mean score, the lowest of equal ones.

    A place where a run diverged or failed has no score; the result is None if no place has one.

    Args:
      tried: the records of each place, one for each seed.
    """
    means, lower_is_better = dict[int, float](), False
    for place, records in sorted(tried.items()):
        scores = saved_scores(records)
        if len(scores) == len(records) and all(each.status == "completed" for each in records):
            means[place] = mean_score(scores)
            lower_is_better = records[0].metric in LOWER_IS_BETTER
    if not means:
        return None
    return (min if lower_is_better else max)(means, key=means.__getitem__)
