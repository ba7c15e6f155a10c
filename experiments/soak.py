r"""Soak the project: kill it, damage its files, fill its disk, feed it nonsense, and count losses.

    python -m experiments.soak --out=runs/soak

Parts, each of which writes OUT/PART.json (kills-COMMAND.json, damage-FILES.json):

    kills         training, saving, tuning and sweeping, killed at drawn moments; the same command
                  goes on, and the results must be the same bits as without kills
    damage        flipped bits and cut files, of what runs, studies and sweeps leave and read: each
                  is found, healed, or without effect; the page on hardening lists what is left out
    surroundings  full disks, read-only and slow folders, clocks that jump, two processes
    not_finite    NaN and infinities in data, weights and the loss
    malformed     configs, patterns, data, tokenizers and weights that hypothesis has spoiled

`--parts` names some of them, `--kills`, `--flips` and `--examples` how much is tried, and `--seed`
draws all of it. A soak that was stopped goes on from these files: kills in the middle of a command,
damage with the next file. Each other part begins again unless it is complete. A file of other
settings or of other code is an error. Parts, `--commands` of kills and `--files` of damage can be
done side by side. The models are tiny, and everything is written below `--scratch`. Exit code 0
means that nothing was lost, silently changed, or reported in other than one clear line.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.distributed.devices import announce
from experiments.soaking import parts
from experiments.soaking.parts import Order
from lora_jax.suggest import require_known

_OUT = flags.DEFINE_string("out", None, "The folder for the results.")
_PARTS = flags.DEFINE_list("parts", list(parts.PARTS), "The parts to do.")
_KILLS = flags.DEFINE_integer("kills", 100, "How often commands are killed.", lower_bound=1)
_FLIPS = flags.DEFINE_integer("flips", 200, "How many files are damaged.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 500, "How many malformed inputs are tried.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "The seed that draws moments, bits and inputs.")
_COMMANDS = flags.DEFINE_list(
    "commands", [], "Kill only these: any of train, export-peft, export-merged, tune and sweep."
)
_FILES = flags.DEFINE_list(
    "files",
    [],
    "Damage only these: any of finished-run, checkpoints, newest-checkpoint, unfinished-run, "
    "inputs, vocabulary, texts, gguf, study, sweep, search, seen, kept-seen, pruned, made-runs, "
    "kept-tokens and kept-programs.",
)
_SCRATCH = flags.DEFINE_string(
    "scratch",
    None,
    "A folder for what is trained; by default a temporary one. Several soaks may share it, and a "
    "later one finds its programs there.",
)


def soak() -> None:
    for name in _PARTS.value:
        require_known(name, parts.PARTS, f"--parts={name}: no such part")
    own = {"kills": (_KILLS, _COMMANDS), "damage": (_FLIPS, _FILES), "malformed": (_EXAMPLES,)}
    for name in own.keys() - set(_PARTS.value):
        cli.refuse_ignored(own[name], f"it goes with --parts={name}")
    if "malformed" in _PARTS.value and importlib.util.find_spec("hypothesis") is None:
        raise ValueError("--parts=malformed needs hypothesis, which is there for tests alone")
    out = cli.out_folder(str(_OUT.value))
    scratch = Path(_SCRATCH.value or tempfile.mkdtemp(prefix="soak-"))
    counts = _KILLS.value, _FLIPS.value, _EXAMPLES.value
    chosen = tuple(_COMMANDS.value), tuple(_FILES.value)
    order = Order(out, scratch, _SEED.value, *counts, *chosen)
    parts.require_names(order)
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    # XLA says twice of each kept program that it may not fit this machine, which it does.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    announce()
    bad = 0
    try:
        for name in _PARTS.value:
            done = parts.PARTS[name](order)
            bad += len(done.wrong)
            print(f"{name}\n\n{done.table}\n", flush=True)
            for each in done.wrong:
                print(f"wrong: {each}")
    finally:
        if _SCRATCH.value is None and not bad:
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"{bad} wrong; results: {out}")
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    cli.main(soak)
