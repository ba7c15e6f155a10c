"""How the files that are damaged are read: as commands do, from a folder, to JSON values."""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.exports import card_origin
from experiments.runs import run, rungs, training
from experiments.runs.group_folder import found_by_timing
from experiments.search import ledger
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config
from experiments.setup.load import read_texts
from experiments.soaking import forked, inputs, results
from experiments.studies import registration
from experiments.sweeps.folder import SweepFolder
from lora_jax.files.canonical_json import plain
from lora_jax.files.tree_file import load_tree
from lora_jax.partition import flatten
from lora_jax.records import run_record

Reader = Callable[[Path], Any]
"""What a folder says, as JSON values."""


def finished(given: inputs.Inputs) -> Reader:
    """Of a finished run's folder: its results, its adapter and its record."""
    config = _config(given)

    def read(folder: Path) -> Any:
        run_record.claim(folder, config.plain)
        found = run_record.read(folder)
        record = None if found is None else dataclasses.asdict(found)
        return plain([results.of_run(folder), *arrays(folder), record])

    return read


def arrays(path: Path) -> Any:
    """Of a file that `save_tree` wrote, or its folder: every array, and the values beside them."""
    tree, meta = load_tree(path)
    leaves, _ = flatten(tree)
    return [{name: results.array(leaf) for name, leaf in leaves.items()}, meta]


def go_on(start: inputs.Start) -> Reader:
    """Of an unfinished run's folder: the results, when it has gone on to its end."""
    config = _config(start)

    def read(folder: Path) -> Any:
        run.run(config, folder, audit=False)
        return plain(results.of_run(folder))

    return read


def go_on_from(start: inputs.Start) -> Reader:
    """As `go_on`, of a folder with such a run, `run`, and with what it started from, `inputs`."""
    read = go_on(start)

    def read_both(folder: Path) -> Any:
        with _in_place_of(start.folder, folder / "inputs"):
            return read(folder / "run")

    return read_both


@contextlib.contextmanager
def _in_place_of(path: Path, other: Path) -> Iterator[None]:
    """Let a path be another folder for a while."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to(other.resolve())
    try:
        yield
    finally:
        path.unlink()
        aside.rename(path)


def study(folder: Path) -> Any:
    found = registration.read(folder)
    return None if found is None else plain(dataclasses.asdict(found))


def sweep(folder: Path) -> Any:
    own = SweepFolder(folder)
    listed = own.require(())
    states = {name: dataclasses.asdict(own.state(own.trial(name))) for name in listed}
    return plain([listed, states, list(found_by_timing(folder / "trials"))])


def decisions(folder: Path) -> list[Path]:
    """What a halving decided, a file for each of its programs."""
    return sorted(folder.rglob(training.LEDGER))


def search(folder: Path) -> Any:
    decided = [rungs.Ledger(path).read() for path in decisions(folder)]
    asked = ledger.Ledger(folder, {}).read()
    return plain([asked, [dataclasses.asdict(each) for each in itertools.chain(*decided)]])


def origins(folder: Path) -> Any:
    """Of a folder of runs that were not trained: the commands that made them, for their cards."""
    return {
        each.name: card_origin.command(each, "config.json")
        for each in sorted(folder.iterdir())
        if each.is_dir()
    }


def tokens(given: inputs.Inputs) -> Reader:
    """Of the cache's folder of tokens: the data, which are read with it."""
    config = _config(given)

    def read(folder: Path) -> Any:
        with _as_cache("tokens", folder):
            encoded = read_texts(config).encoded
        return {
            name: [
                *(results.array(each) for each in (part.ids, part.type_ids, part.offsets)),
                [part.pad_id, part.truncated],
            ]
            for name, part in encoded.items()
        }

    return read


def new_run_with_seen(start: inputs.Start) -> Reader:
    """Of the cache's folder of what initialisations have seen: the results of a run with it."""
    read_run = go_on(start)

    def read(folder: Path) -> Any:
        workdir = folder.parent / "trained"
        try:
            with _as_cache("seen", folder):
                return read_run(workdir)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)

    return read


@contextlib.contextmanager
def _as_cache(kind: str, folder: Path) -> Iterator[None]:
    """Let a folder be the user's cache of some kind for a while; of other kinds there is none."""
    home = folder.parent / "home"
    (home / "lora_jax").mkdir(parents=True)
    (home / "lora_jax" / kind).symlink_to(folder.resolve())
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(home)
    try:
        yield
    finally:
        shutil.rmtree(home)
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def new_run_with_programs(given: inputs.Inputs, environment: Mapping[str, str]) -> Reader:
    """Of the cache's folder of programs: the results of a run that finds them there."""

    def read(folder: Path) -> Any:
        workdir = folder.parent / "trained"
        own = {**environment, "JAX_COMPILATION_CACHE_DIR": str(folder)}
        ended = forked.run(inputs.train(given, workdir), own)
        if ended.one_error_line:
            raise ValueError(ended.line)
        if ended.code:
            raise RuntimeError(f"code {ended.code}: {ended.line}")
        value = plain(results.of_run(workdir))
        shutil.rmtree(workdir)
        return value

    return read


def _config(start: inputs.Start) -> Any:
    return parse(read_config(start.config).to_dict())
