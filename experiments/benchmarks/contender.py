"""The process of one contender: for each line with a number, take so many steps.

    python -m experiments.benchmarks.contender ours lora "all six" 32 48

It answers with a line of JSON: the seconds of each step.
"""

import importlib
import json
import sys
import time

import numpy as np

from experiments.benchmarks import cases
from experiments.benchmarks.cases import Case

SIDES = {"ours": "our_step", "peft": "peft_step"}


def batch(case: Case) -> dict[str, np.ndarray]:
    """Random tokens, without padding, and labels."""
    rng, shape = np.random.default_rng(0), (case.rows, case.tokens)
    return {
        "input_ids": rng.integers(1000, 30_000, shape).astype(np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
        "label": rng.integers(0, cases.CLASSES, case.rows).astype(np.int32),
        "weight": np.ones(case.rows, np.float32),
    }


def serve(side: str, case: Case) -> None:
    take = importlib.import_module(f"experiments.benchmarks.{SIDES[side]}").make(case, batch(case))
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            take()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    side, method, targets, rows, tokens = sys.argv[1:]
    serve(side, Case(method, targets, int(rows), int(tokens)))  # type: ignore[arg-type]
