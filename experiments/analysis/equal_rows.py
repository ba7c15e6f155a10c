"""Find methods that gave the predictions of another method, such as adapters that did nothing."""

from collections.abc import Iterator, Mapping

import numpy as np

from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.draws import Number

SAME = 0.01
"""Two methods are the same if their outputs differ by less than this share of their spread.

Of the committed runs, adapters that do nothing differ from the head alone by 0.4 to 0.7%. Those
that do something differ from other methods by 3% or more, but for LoRA in float32 from LoRA.
"""


def equal_rows(contest: Contest) -> list[tuple[Method, ...]]:
    """The methods whose predictions agree on all examples and common seeds, in groups of several.

    Only the share of a class matters: what is added to all classes of an example changes nothing. A
    method joins the first group whose first method it agrees with. One without predictions of two
    seeds joins none.
    """
    groups: list[list[tuple[Method, Mapping[Number, np.ndarray]]]] = []
    for method in contest.methods:
        own = dict(_outputs(method))
        same = (each for each in groups if _agree(each[0][1], own))
        group = next(same, None)
        if group is None:
            groups.append(group := [])
        group.append((method, own))
    return [tuple(method for method, _ in group) for group in groups if len(group) > 1]


def _outputs(method: Method) -> Iterator[tuple[Number, np.ndarray]]:
    """The centred outputs of each scored run, (examples, classes or 1)."""
    for run in method.runs:
        part = run.predictions().get("validation") if run.completed else None
        if part is not None:
            outputs = np.asarray(part.outputs, np.float64)
            classes = outputs.shape[1] > 1
            yield run.number, outputs - outputs.mean(1, keepdims=True) if classes else outputs


def _agree(one: Mapping[Number, np.ndarray], other: Mapping[Number, np.ndarray]) -> bool:
    common = one.keys() & other.keys()
    if len(common) < 2 or any(one[each].shape != other[each].shape for each in common):
        return False
    apart = np.mean([np.mean((one[each] - other[each]) ** 2) for each in common])
    spread = np.mean([np.var(one[each], axis=0).mean() for each in common])
    return bool(apart <= SAME**2 * spread)
