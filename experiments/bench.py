r"""Time training steps beside those of Hugging Face PEFT, in turns on this machine.

    make bench
    .venv-parity/bin/python -m experiments.bench --cases=lora,dora --turns=20 --out=bench.json

Each side trains all-MiniLM-L6-v2 on the same batch, 32 x 48 random tokens, in a process of its own:
forward pass, backward pass, clipping and AdamW, in float32, without dropout. A turn is three steps;
its time is that of the fastest. The sides take turns, so that what else the machine does hits both.
A ratio is the median over neighbouring turns, with its quartiles: above 1, ours is the faster one.
Threads and allocator settings are the same on both sides.
"""

import dataclasses
import json
import os
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.benchmarks.cases import TRAIN, Case
from experiments.benchmarks.turns import Timing, time_in_turns
from lora_jax.files.atomic import write_atomically
from lora_jax.records.environment import environment
from lora_jax.suggest import nearest

_CASES = flags.DEFINE_list("cases", [], "Methods to time; by default all of them.")
_TURNS = flags.DEFINE_integer("turns", 10, "Turns of each side.", lower_bound=2)
_OUT = flags.DEFINE_string("out", None, "A JSON file for all times, and the machine.")


def bench() -> None:
    timings = []
    print("| method | ours, ms | PEFT, ms | PEFT/ours | quartiles |\n|---|---|---|---|---|")
    for case in chosen(_CASES.value):
        timings.append(time_in_turns(case, ("ours", "peft"), _TURNS.value))
        print(row(timings[-1]), flush=True)
    if _OUT.value is not None:
        write_atomically(Path(_OUT.value), f"{json.dumps(content(timings), indent=1)}\n".encode())
        print(f"times: {_OUT.value}")


def chosen(names: list[str]) -> list[Case]:
    """The cases of the methods with these names; all cases without a name.

    Raises:
      ValueError: no case has such a method.
    """
    known = dict.fromkeys(case.method for case in TRAIN)
    for name in names:
        if name not in known:
            raise ValueError(f"--cases={name}: no such method; nearest: {nearest(name, known)}")
    return [case for case in TRAIN if not names or case.method in names]


def row(timing: Timing) -> str:
    """A row of the Markdown table."""
    ours, peft = (f"{1000 * timing.least(side):.0f}" for side in ("ours", "peft"))
    middle, low, high = timing.ratio("peft", "ours")
    return f"| {timing.case} | {ours} | {peft} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def content(timings: list[Timing]) -> dict[str, object]:
    """All times, with the machine that they were taken on."""
    machine = {**environment(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    return {"machine": machine, "timings": [dataclasses.asdict(each) for each in timings]}


if __name__ == "__main__":
    cli.main(bench)
