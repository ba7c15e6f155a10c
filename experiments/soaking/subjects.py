"""The files that are damaged, and how each is read."""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.runs import halving, run, rungs
from experiments.runs.group_folder import found_by_timing
from experiments.search import ledger
from experiments.setup.config import parse
from experiments.setup.load import read_texts
from experiments.setup.read_config import read_config
from experiments.soaking import forked, inputs, results
from experiments.soaking.damage import Subject
from experiments.studies import registration
from experiments.sweeps.folder import SweepFolder
from lora_jax.files.canonical_json import plain
from lora_jax.files.tree_file import load_tree
from lora_jax.partition import flatten
from lora_jax.records import run_record

RESULTS = ("record.json", "metrics.jsonl", "predictions.npz", "adapter.safetensors", "config.json")


def subjects(
    given: inputs.Inputs, finished: Path, scratch: Path, environment: Mapping[str, str]
) -> list[Subject]:
    """What runs, studies and sweeps leave and read; `docs/reference/hardening.md` says what not.

    Args:
      finished: a finished run, with its checkpoints.
      scratch: a new folder for a sweep, a search, a study and an unfinished run.
    """
    unfinished, beside = scratch / "unfinished", scratch / "beside"
    own = inputs.Inputs(scratch / "own" / "inputs")  # its path is another folder for a while
    tokens = Path(environment["XDG_CACHE_HOME"]) / "lora_jax" / "tokens"
    programs = Path(environment["JAX_COMPILATION_CACHE_DIR"])

    def swept(folder: Path) -> None:
        _made(inputs.sweep(given, folder, seeds=1), environment)
        _unfinished_trial(folder)

    def killed(folder: Path) -> None:
        shutil.copytree(finished, folder)
        _without_results(folder)

    def trained(folder: Path) -> None:
        shutil.copytree(given.folder, own.folder)
        _made(inputs.train(own, folder / "run"), environment)
        _without_results(folder / "run")
        shutil.copytree(own.folder, folder / "inputs")

    go_on, named = _go_on(given), _named(*RESULTS)
    steps, rest = _below("checkpoints"), _named("metrics.jsonl", "config.json")
    study, sweep, search = scratch / "study", scratch / "sweep", scratch / "search"
    read_tokens, train = _read_tokens(given), _train_with_programs(given, environment)
    return [
        Subject("finished-run", finished, named, _read_finished(given), share=60),
        Subject("checkpoints", unfinished, steps, go_on, share=20, make=killed),
        Subject("newest-checkpoint", unfinished, _newest, go_on, share=20, make=killed),
        Subject("unfinished-run", unfinished, rest, go_on, share=10, make=killed),
        # The model, its tokenizer and the data, between two starts of a run.
        Subject(
            "inputs",
            beside,
            _inputs,
            lambda folder: _go_on(inputs.Inputs(folder / "inputs"), own)(folder / "run"),
            share=24,
            make=trained,
        ),
        Subject(
            "study",
            study,
            _named("study.json"),
            _read_study,
            share=14,
            make=lambda folder: _made(inputs.tune(given, folder), environment),
        ),
        Subject("sweep", sweep, _sweep_files, _read_sweep, share=26, make=swept),
        Subject(
            "search",
            search,
            lambda folder: [folder / ledger.NAME, *_decisions(folder)],
            _read_search,
            share=14,
            make=lambda folder: _made(inputs.search(given, folder), environment),
        ),
        Subject("kept-tokens", tokens, _below("."), read_tokens, share=20),
        Subject("kept-programs", programs, _below("."), train, share=6),
    ]


def _made(line: list[str], environment: Mapping[str, str]) -> None:
    if (ended := forked.run(line, environment)).code:
        raise RuntimeError(f"{line[0]} fails without damage: {ended.err}")


def _without_results(run: Path) -> None:
    """Let a finished run be one that was killed before it wrote its results."""
    for name in ("record.json", "adapter.safetensors", "predictions.npz"):
        (run / name).unlink()


def _newest(folder: Path) -> list[Path]:
    """The files of the newest checkpoint that are read: others are copies, or say when it ended."""
    checkpoints = folder / "checkpoints"
    newest = checkpoints / str(max(int(each.name) for each in checkpoints.iterdir()))
    read = ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt")
    return [*(newest / name for name in read), *sorted((newest / "state" / "d").iterdir())]


def _named(*names: str) -> Callable[[Path], list[Path]]:
    return lambda folder: [folder / name for name in names]


def _below(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(each for each in (folder / name).rglob("*") if each.is_file())


def _inputs(folder: Path) -> list[Path]:
    own = inputs.Inputs(folder / "inputs")
    return [own.train, own.validation, *sorted(own.model.iterdir())]


def _sweep_files(folder: Path) -> list[Path]:
    groups = sorted((folder / "trials").glob(".programs/*.json"))
    return [folder / "trials.json", *sorted((folder / "outcomes").iterdir()), *groups]


def _config(given: inputs.Inputs) -> Any:
    return parse(read_config(given.config).to_dict())


def _read_finished(given: inputs.Inputs) -> Callable[[Path], Any]:
    config = _config(given)

    def read(folder: Path) -> Any:
        run_record.claim(folder, config.plain)
        tree, meta = load_tree(folder)
        leaves, _ = flatten(tree)
        adapter = {name: results.array(leaf) for name, leaf in leaves.items()}
        found = run_record.read(folder)
        record = None if found is None else dataclasses.asdict(found)
        return plain([results.of_run(folder), adapter, meta, record])

    return read


def _go_on(given: inputs.Inputs, named: inputs.Inputs | None = None) -> Callable[[Path], Any]:
    """Go on with a run to its end, and read its results.

    Args:
      named: the inputs that the run's config names, which stand for those of `given` by then.
    """
    config = _config(named or given)

    def read(folder: Path) -> Any:
        if named is None:
            run.run(config, folder, audit=False)
            return plain(results.of_run(folder))
        with _in_place_of(named.folder, given.folder):
            run.run(config, folder, audit=False)
            return plain(results.of_run(folder))

    return read


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


def _read_study(folder: Path) -> Any:
    found = registration.read(folder)
    return None if found is None else plain(dataclasses.asdict(found))


def _unfinished_trial(folder: Path) -> None:
    """Let the last trial of a finished sweep be one that was killed."""
    sweep = SweepFolder(folder)
    name = list(sweep.require(()))[-1]
    (sweep.run(name) / "record.json").unlink()
    sweep.end(name, "killed", "its process was ended by SIGKILL", 1)


def _read_sweep(folder: Path) -> Any:
    sweep = SweepFolder(folder)
    listed = sweep.require(())
    states = {name: dataclasses.asdict(sweep.state(sweep.trial(name))) for name in listed}
    return plain([listed, states, list(found_by_timing(folder / "trials"))])


def _decisions(folder: Path) -> list[Path]:
    """What a halving decided, a file for each of its programs."""
    return sorted(folder.rglob(halving.LEDGER))


def _read_search(folder: Path) -> Any:
    decided = [rungs.Ledger(path).read() for path in _decisions(folder)]
    asked = ledger.Ledger(folder, {}).read()
    return plain([asked, [dataclasses.asdict(each) for each in itertools.chain(*decided)]])


def _read_tokens(given: inputs.Inputs) -> Callable[[Path], Any]:
    config = _config(given)

    def read(folder: Path) -> Any:
        home = folder.parent / "home"
        (home / "lora_jax").mkdir(parents=True)
        (home / "lora_jax" / "tokens").symlink_to(folder.resolve())
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(home)
        try:
            encoded = read_texts(config).encoded
        finally:
            shutil.rmtree(home)
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before
        return {
            name: [
                *(results.array(each) for each in (part.ids, part.type_ids, part.offsets)),
                [part.pad_id, part.truncated],
            ]
            for name, part in encoded.items()
        }

    return read


def _train_with_programs(
    given: inputs.Inputs, environment: Mapping[str, str]
) -> Callable[[Path], Any]:
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
