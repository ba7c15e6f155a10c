"""Flipped bits and cut files: each is found, healed, or without effect on what is read.

A change is silent if reading ends without an error or a warning and gives another value than that
of the whole file. The value is all that a reader gets: every array, every number, every text.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import kills
import small_study

from experiments.exports import model_card
from experiments.runs import run, rungs, training
from experiments.runs.group_folder import found_by_timing
from experiments.setup import from_data
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.setup.load import read_texts
from experiments.studies import registration
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.search import search
from lora_jax.files.json_text import plain
from lora_jax.files.tree_file import load_tree
from lora_jax.partition import flatten
from lora_jax.records import run_record

GOOD = ("found", "healed", "harmless", "warned")
"""How a reader may take damage.

found     an error of one line
healed    a warning, and the value is that of the whole file
harmless  the value is that of the whole file, without a word
warned    another value, with a warning
"""
RESULTS = ("record.json", "metrics.jsonl", "predictions.npz", "adapter.safetensors", "config.json")


@dataclasses.dataclass(frozen=True)
class Subject:
    """Files that are read together."""

    make: Callable[[Path], None]
    """Makes a new folder with them."""
    files: Callable[[Path], list[Path]]
    """Those below a copy of the folder that are damaged."""
    read: Callable[[Path], Any]
    """What a copy of the folder says, as JSON values; it may change the copy."""


def subjects(inputs: Path, finished: Path, scratch: Path) -> dict[str, Subject]:
    """What runs, studies and sweeps leave and read; `finished` is a finished run."""

    def copied(folder: Path) -> None:
        shutil.copytree(finished, folder)

    def unfinished(folder: Path) -> None:
        copied(folder)
        _remove_results(folder)

    def begun(folder: Path) -> None:
        shutil.copytree(inputs, folder / "inputs")
        shutil.copytree(finished, folder / "run")
        _remove_results(folder / "run")

    def seen(folder: Path) -> None:
        _do(small_study.train(inputs, folder, "lora_ga"))
        _remove_results(folder)
        (folder / "metrics.jsonl").unlink()
        shutil.rmtree(folder / "checkpoints")

    def swept(folder: Path) -> None:
        _do(small_study.sweep(inputs, folder))
        own = SweepFolder(folder)
        name = list(own.require(()))[-1]
        (own.run(name) / "record.json").unlink()
        own.end(name, "killed", "its process was ended by SIGKILL", 1)

    def combined(folder: Path) -> None:
        _do(["experiments.combine", f"--runs={finished}", "--by=negate", f"--out={folder}"])

    def tokens(folder: Path) -> None:
        shutil.copytree(Path(os.environ["XDG_CACHE_HOME"]) / "lora_jax/tokens", folder)

    go_on = _go_on(inputs)
    return {
        "finished-run": Subject(copied, _named(*RESULTS), _read_finished(inputs)),
        "checkpoints": Subject(unfinished, _below("checkpoints"), go_on),
        "newest-checkpoint": Subject(unfinished, _newest_checkpoint, go_on),
        "unfinished-run": Subject(unfinished, _named("metrics.jsonl", "config.json"), go_on),
        "inputs": Subject(begun, _below("inputs"), _go_on_with_inputs(inputs)),
        "seen": Subject(seen, _named(from_data.FILE), _go_on(inputs, "lora_ga")),
        "combined": Subject(combined, _named("combined.json"), _read_origin),
        "study": Subject(
            lambda folder: _do(small_study.tune(inputs, folder)), _named("study.json"), _read_study
        ),
        "sweep": Subject(swept, _sweep_files, _read_sweep),
        "search": Subject(
            lambda folder: _do(small_study.search(inputs, folder)), _search_files, _read_search
        ),
        "tokens": Subject(tokens, _below("."), _read_tokens(inputs, scratch / "home")),
    }


def tries(
    name: str, subject: Subject, count: int, seed: int, scratch: Path
) -> Iterator[tuple[str, bool]]:
    """Damage files `count` times, one at a time; a line for each, and whether it was taken well."""
    if not count:
        return
    scratch.mkdir(parents=True)
    source, copy = scratch / "source", scratch / "copy"
    subject.make(source)
    value = _read_copy(subject, source, copy)
    for number in range(count):
        drawn = random.Random(f"{seed} {name} {number}")
        shutil.copytree(source, copy)
        path = drawn.choice([each for each in subject.files(copy) if each.stat().st_size])
        how = spoil(path, drawn)
        outcome = taken(lambda: subject.read(copy), value)
        yield f"{name}, {path.relative_to(copy)}, {how}: {': '.join(outcome)}", outcome[0] in GOOD
        shutil.rmtree(copy)


def _read_copy(subject: Subject, source: Path, copy: Path) -> Any:
    shutil.copytree(source, copy)
    with _quiet():
        value = subject.read(copy)
    shutil.rmtree(copy)
    return value


def spoil(path: Path, drawn: random.Random) -> str:
    """Flip a bit of a file, or cut it, one time in three; say how."""
    content = bytearray(path.read_bytes())
    place = drawn.randrange(len(content))
    if drawn.random() < 1 / 3:
        path.write_bytes(content[:place])
        return f"cut to {place:,} of {len(content):,} bytes"
    bit = drawn.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place:,}"


def taken(read: Callable[[], Any], value: Any) -> tuple[str, str]:
    """How a reader takes damage: one of GOOD, or `silent` or `unclear`; and what it says."""
    try:
        with _quiet() as caught:
            found = read()
    except (ValueError, OSError) as error:
        said = str(error)
        return ("found" if said and "\n" not in said else "unclear"), said
    except Exception as error:  # what a reader must not raise
        return "unclear", f"{type(error).__name__}: {error}"
    warned = "; ".join(" ".join(str(each.message).split()) for each in caught)
    if found == value:
        return ("healed" if warned else "harmless"), warned
    return ("warned" if warned else "silent"), warned


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Catch warnings, and keep progress bars and lines from the screen."""
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries, and nothing of files
        yield caught


def _do(line: list[str]) -> None:
    ended = commands.run(*line)
    if ended.returncode:
        raise RuntimeError(f"{line[0]} fails without damage: {ended.stderr}")


def _remove_results(run_folder: Path) -> None:
    """Let a finished run be one that was killed before it wrote its results."""
    for name in ("record.json", "adapter.safetensors", "predictions.npz"):
        (run_folder / name).unlink()


def _named(*names: str) -> Callable[[Path], list[Path]]:
    return lambda folder: [folder / name for name in names]


def _below(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(each for each in (folder / name).rglob("*") if each.is_file())


def _newest_checkpoint(folder: Path) -> list[Path]:
    """The files of the newest checkpoint that are read: others are copies, or say when it ended."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda each: int(each.name))
    read = ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt")
    return [*(newest / name for name in read), *sorted((newest / "state" / "d").iterdir())]


def _sweep_files(folder: Path) -> list[Path]:
    groups = sorted((folder / "trials").glob(".programs/*.json"))
    return [folder / "trials.json", *sorted((folder / "outcomes").iterdir()), *groups]


def _search_files(folder: Path) -> list[Path]:
    return [folder / search.NAME, *sorted(folder.rglob(training.LEDGER))]


def _config(inputs: Path, variant: str = "lora") -> Any:
    return parse(read_config(small_study.config_flags(inputs, variant)).to_dict())


def _read_finished(inputs: Path) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        run_record.claim(folder, _config(inputs).plain)
        record = run_record.read(folder)
        tree, meta = load_tree(folder)
        arrays = {name: kills.array(leaf) for name, leaf in flatten(tree)[0].items()}
        whole = None if record is None else dataclasses.asdict(record)
        return plain([kills.run_results(folder), arrays, meta, whole])

    return read


def _go_on(inputs: Path, variant: str = "lora") -> Callable[[Path], Any]:
    """Train an unfinished run to its end, and read the results."""

    def read(folder: Path) -> Any:
        run.run(_config(inputs, variant), folder, audit=False)
        return kills.run_results(folder)

    return read


def _go_on_with_inputs(inputs: Path) -> Callable[[Path], Any]:
    """The same, where the model and the data are those beside the run."""

    def read(folder: Path) -> Any:
        aside = inputs.with_name("aside")
        inputs.rename(aside)
        inputs.symlink_to((folder / "inputs").resolve())
        try:
            return _go_on(inputs)(folder / "run")
        finally:
            inputs.unlink()
            aside.rename(inputs)

    return read


def _read_study(folder: Path) -> Any:
    found = registration.read(folder)
    return None if found is None else plain(dataclasses.asdict(found))


def _read_sweep(folder: Path) -> Any:
    own = SweepFolder(folder)
    listed = own.require(())
    states = {name: dataclasses.asdict(own.state(own.trial(name))) for name in listed}
    return plain([listed, states, list(found_by_timing(folder / "trials"))])


def _read_search(folder: Path) -> Any:
    _, *decided = _search_files(folder)
    rows = itertools.chain(*(rungs.Ledger(path).read() for path in decided))
    return plain([search.Ledger(folder, {}).read(), [dataclasses.asdict(each) for each in rows]])


def _read_origin(folder: Path) -> Any:
    """The command that made a run which was not trained, as its card quotes it."""
    return model_card.origin_command(folder, "config.json")


def _read_tokens(inputs: Path, home: Path) -> Callable[[Path], Any]:
    """The data as a run has them where the folder is the cache of tokens."""

    def read(folder: Path) -> Any:
        (home / "lora_jax").mkdir(parents=True)
        (home / "lora_jax" / "tokens").symlink_to(folder.resolve())
        before, os.environ["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"], str(home)
        try:
            encoded = read_texts(_config(inputs)).encoded
        finally:
            os.environ["XDG_CACHE_HOME"] = before
            shutil.rmtree(home)
        return {
            name: [
                *map(kills.array, (part.ids, part.type_ids, part.offsets)),
                [part.pad_id, part.truncated],
            ]
            for name, part in encoded.items()
        }

    return read
