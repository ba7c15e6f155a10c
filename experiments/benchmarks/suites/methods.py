"""Training steps of every method beside LoRA's, for the table of `experiments.methods`.

MiniLM learns from batches of 32 x 48 tokens. Each method has its default settings, and adapts what
its file suggests: by default all linear layers. Methods are found by themselves, and one that
cannot adapt the model is left out. One of your own is timed if `--cases` has its dotted name, such
as my_package.my_variant.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import variants
from experiments.benchmarks.cases import Case, Contender, Group, Ratio
from experiments.benchmarks.plan import Plan, chosen, measure
from experiments.benchmarks.results import Measured

AGAINST = ("lora",)
TURNS = 5
LORA = "lora"


def run(plan: Plan) -> Iterator[Measured]:
    wanted, measured = chosen(groups(plan.cases), plan), 0
    for group in wanted:
        try:
            yield from measure([group], dataclasses.replace(plan, cases=()))
            measured += 1
        except ValueError as error:
            print(f"without {group.name}: {error}", file=sys.stderr)
    if not measured:
        raise ValueError(f"none of {', '.join(group.name for group in wanted)} can be timed")


def groups(wanted: Sequence[str] = ()) -> list[Group]:
    """A pair for each method but LoRA, named as the method.

    Args:
      wanted: parts of names, or dotted names of other modules.
    """
    own = [name for name in wanted if "." in name]
    for name in own:
        variants.find(name)  # says what is wrong with it
    return [_group(name) for name in (*variants.names(), *own) if name != LORA]


def _group(name: str) -> Group:
    pair = {each: Contender("ours", Case(method=each, rank=0)) for each in (name, LORA)}
    return Group(name, pair, (Ratio(name, LORA, against=LORA),))
