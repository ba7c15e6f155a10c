r"""Time this project beside others, or beside itself, in turns on this machine.

    make bench ARGS="--suite=train --out=runs/bench"
    .venv-parity/bin/python -m benchmarks --against=peft --cases=dora --turns=20
    python -m benchmarks --documents=README.md,docs  # times nothing, rewrites their tables

Suites:

    train      training steps beside PEFT's, LoRA written by hand, and other methods
    methods    training steps of every method there is, beside LoRA's
    memory     memory of steps beside PEFT's, and the batch that the memory of full training holds
    infer      a merged and an unmerged adapter beside the base model
    generate   generated tokens beside those of transformers
    compile    compiling a step, by method
    sweep      a sweep beside a process for each of its trials
    start      from the start of a process to its first step, and what a second run compiles
    bank       many adapters in one batch beside one adapter and beside PEFT's, and their loading
    scale      how time and memory grow, with exponents beside those in theory
    gpu        Llama shapes of 1B to 8B on an accelerator

Every contender works in a process of its own, and the processes take turns, so that what else the
machine does hits all of them; the time of a turn is that of its fastest work. A ratio is the median
over neighbouring turns, with its quartiles. Threads and allocator settings are the same for all.

`--out` names a folder, which gets SUITE.json: all times, and the machine. `--size=smoke` takes tiny
models: it tries the suite and says nothing about speed. `--documents` writes the committed results,
those of `experiments/results/bench`, into Markdown files.
"""

import json
import os

from absl import flags

from benchmarks import results
from benchmarks.cases import Plan, sides
from benchmarks.suites import SUITES
from experiments import cli
from experiments.setup.devices import announce
from lora_jax.files import marked_documents
from lora_jax.files.atomic import write_atomically
from lora_jax.messages import require_known

_SUITE = flags.DEFINE_string("suite", "train", "The suite to time.")
_AGAINST = flags.DEFINE_list(
    "against",
    [],
    "What to compare with: any of peft, full, hand, merged and lora. The default is all "
    "that the suite has.",
)
_CASES = flags.DEFINE_list(
    "cases", [], "Time only groups with one of these in their names. The default is all groups."
)
_TURNS = flags.DEFINE_integer(
    "turns",
    None,
    "How many turns each contender takes. The default is the suite's own number.",
    lower_bound=1,
)
_SIZE = flags.DEFINE_enum(
    "size",
    "full",
    ["full", "smoke"],
    "How large the models are: full takes real ones; smoke takes tiny ones.",
)
_OUT = flags.DEFINE_string(
    "out", None, "The folder for the results. By default, they are only printed."
)
_DOCUMENTS = flags.DEFINE_list("documents", [], f"{marked_documents.HELP} Nothing is timed.")


def bench() -> None:
    if _DOCUMENTS.value:
        cli.refuse_all_but((_DOCUMENTS,), "--documents times nothing")
        marked_documents.update(_DOCUMENTS.value, results.fill)
        return
    name = str(_SUITE.value)
    require_known(name, SUITES, f"--suite={name}: no such suite")
    if name in ("sweep", "start"):
        cli.refuse_ignored((_CASES,), f"--suite={name} has no cases")
    if name == "start":
        cli.refuse_ignored((_SIZE,), "--suite=start trains the quickstart")
    # All processes share a GPU, which none may take whole.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    suite = SUITES[name]
    plan = Plan(
        against=sides(name, suite.against, _AGAINST.value),
        turns=_TURNS.value or suite.turns,
        smoke=_SIZE.value == "smoke",
        cases=tuple(_CASES.value),
    )
    out = None if _OUT.value is None else cli.out_folder(_OUT.value)
    announce()
    found: list[results.Measured] = []
    for measured in suite.run(plan):
        found.append(measured)
        print(results.summary([measured]) or measured.name, flush=True)
        if out is not None:  # now: what follows may take hours
            whole = results.content(name, plan, found)
            write_atomically(out / f"{name}.json", f"{json.dumps(whole, indent=1)}\n".encode())
    if out is not None:
        print(f"results: {out}")


if __name__ == "__main__":
    cli.main(bench)
