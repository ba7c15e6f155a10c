"""The files that are damaged; `readers` reads them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.combining import combined_run
from experiments.imports import imported_run
from experiments.search import ledger
from experiments.setup import from_data
from experiments.soaking import forked, inputs, readers, text_inputs
from experiments.soaking.damage import Subject
from experiments.soaking.inputs import Inputs, Start
from experiments.soaking.text_inputs import TextInputs
from experiments.sweeps.folder import SweepFolder

RESULTS = ("record.json", "metrics.jsonl", "predictions.npz", "adapter.safetensors", "config.json")
PRUNED = "pruned.safetensors"

Files = Callable[[Path], list[Path]]


def subjects(
    given: Inputs, finished: Path, scratch: Path, environment: Mapping[str, str]
) -> list[Subject]:
    """What runs, studies and sweeps leave and read; `docs/reference/hardening.md` says what not.

    Args:
      finished: a finished run, with its checkpoints.
      scratch: a new folder for all that other commands make.
    """

    def make(line: list[str]) -> None:
        if (ended := forked.run(line, environment)).code:
            raise RuntimeError(f"{line[0]} fails without damage: {ended.err}")

    return [
        Subject("finished-run", finished, _named(*RESULTS), readers.finished(given), share=60),
        *_unfinished(given, finished, scratch / "unfinished"),
        *_between_two_starts(scratch, make),
        *_of_sweeps(given, scratch, make),
        *_of_methods(given, scratch, Path(environment["XDG_CACHE_HOME"]), make),
        _made_runs(given, finished, scratch / "made", make),
        Subject(
            "kept-tokens",
            Path(environment["XDG_CACHE_HOME"]) / "lora_jax" / "tokens",
            _below("."),
            readers.tokens(given),
            share=20,
        ),
        Subject(
            "kept-programs",
            Path(environment["JAX_COMPILATION_CACHE_DIR"]),
            _below("."),
            readers.new_run_with_programs(given, environment),
            share=6,
        ),
    ]


Make = Callable[[list[str]], None]
"""Gives a command, which must succeed."""


def _unfinished(given: Inputs, finished: Path, folder: Path) -> list[Subject]:
    """A run that was killed before it wrote its results."""

    def killed(path: Path) -> None:
        shutil.copytree(finished, path)
        _without_results(path)

    parts: list[tuple[str, Files, int]] = [
        ("checkpoints", _below("checkpoints"), 20),
        ("newest-checkpoint", _newest, 20),
        ("unfinished-run", _named("metrics.jsonl", "config.json"), 10),
    ]
    read = readers.go_on(given)
    return [Subject(name, folder, files, read, share, killed) for name, files, share in parts]


def _between_two_starts(scratch: Path, make: Make) -> list[Subject]:
    """Models, tokenizers and data, which are damaged between two starts of a run."""

    def subject(
        name: str, start: Start, write: Callable[[], object], files: Files, share: int
    ) -> Subject:
        def begun(folder: Path) -> None:
            write()
            make(inputs.train(start, folder / "run"))
            _without_results(folder / "run")
            shutil.copytree(start.folder, folder / "inputs")

        read = readers.go_on_from(start)
        return Subject(name, scratch / "begun" / name, files, read, share, begun)

    own, words = (Inputs(scratch / "own" / name) for name in ("inputs", "vocabulary"))
    texts = TextInputs(scratch / "own" / "texts", "model")
    gguf = TextInputs(scratch / "own" / "gguf", "model.gguf")
    return [
        subject("inputs", own, lambda: inputs.make(own.folder), _inputs, 24),
        subject(
            "vocabulary",
            words,
            lambda: inputs.make_with_vocabulary(words.folder),
            _named("inputs/model/vocab.txt"),
            8,
        ),
        subject(
            "texts",
            texts,
            lambda: text_inputs.make(texts),
            _named(
                "inputs/train.jsonl", "inputs/validation.jsonl", "inputs/model/chat_template.jinja"
            ),
            12,
        ),
        subject("gguf", gguf, lambda: text_inputs.make(gguf), _named("inputs/model.gguf"), 8),
    ]


def _of_sweeps(given: Inputs, scratch: Path, make: Make) -> list[Subject]:
    def swept(folder: Path) -> None:
        make(inputs.sweep(given, folder, seeds=1))
        _unfinished_trial(folder)

    return [
        Subject(
            "study",
            scratch / "study",
            _named("study.json"),
            readers.study,
            share=14,
            make=lambda folder: make(inputs.tune(given, folder)),
        ),
        Subject("sweep", scratch / "sweep", _sweep_files, readers.sweep, share=26, make=swept),
        Subject(
            "search",
            scratch / "search",
            lambda folder: [folder / ledger.NAME, *readers.decisions(folder)],
            readers.search,
            share=14,
            make=lambda folder: make(inputs.search(given, folder)),
        ),
    ]


def _of_methods(given: Inputs, scratch: Path, caches: Path, make: Make) -> list[Subject]:
    """What an initialisation from data has seen, and the adapter that AdaLoRA has pruned."""
    seeing = Inputs(given.folder, "lora_ga")

    def before_its_first_checkpoint(folder: Path) -> None:
        make(inputs.train(seeing, folder))
        _without_results(folder)
        (folder / "metrics.jsonl").unlink()
        shutil.rmtree(folder / "checkpoints")

    def pruned(folder: Path) -> None:
        fewer = "--config.variant.target_rank=1"
        make(inputs.train(Inputs(given.folder, "adalora"), folder, fewer))

    return [
        Subject(
            "seen",
            scratch / "seen",
            _named(from_data.FILE),
            readers.go_on(seeing),
            share=12,
            make=before_its_first_checkpoint,
        ),
        Subject(
            "kept-seen",
            caches / "lora_jax" / "seen",
            _below("."),
            readers.new_run_with_seen(seeing),
            share=4,
            make=lambda _: make(inputs.train(seeing, scratch / "seeing")),
        ),
        Subject(
            "pruned",
            scratch / "pruned",
            _named(PRUNED),
            lambda folder: readers.arrays(folder / PRUNED),
            share=8,
            make=pruned,
        ),
    ]


def _made_runs(given: Inputs, finished: Path, folder: Path, make: Make) -> Subject:
    """Adapters that no training here made: an imported one, and one of another's."""

    def made(path: Path) -> None:
        exported = path.with_name("exported")
        make(inputs.export(finished, exported))
        make(inputs.import_adapter(given, exported, path / "imported"))
        make(inputs.combine(finished, path / "combined"))

    files = f"imported/{imported_run.FILE}", f"combined/{combined_run.FILE}"
    return Subject("made-runs", folder, _named(*files), readers.origins, share=8, make=made)


def _without_results(run: Path) -> None:
    """Let a finished run be one that was killed before it wrote its results."""
    for name in ("record.json", "adapter.safetensors", "predictions.npz"):
        (run / name).unlink()


def _unfinished_trial(folder: Path) -> None:
    """Let the last trial of a finished sweep be one that was killed."""
    sweep = SweepFolder(folder)
    name = list(sweep.require(()))[-1]
    (sweep.run(name) / "record.json").unlink()
    sweep.end(name, "killed", "its process was ended by SIGKILL", 1)


def _newest(folder: Path) -> list[Path]:
    """The files of the newest checkpoint that are read: others are copies, or say when it ended."""
    checkpoints = folder / "checkpoints"
    newest = checkpoints / str(max(int(each.name) for each in checkpoints.iterdir()))
    read = ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt")
    return [*(newest / name for name in read), *sorted((newest / "state" / "d").iterdir())]


def _named(*names: str) -> Files:
    return lambda folder: [folder / name for name in names]


def _below(name: str) -> Files:
    return lambda folder: sorted(each for each in (folder / name).rglob("*") if each.is_file())


def _inputs(folder: Path) -> list[Path]:
    own = Inputs(folder / "inputs")
    return [own.train, own.validation, *sorted(own.model.iterdir())]


def _sweep_files(folder: Path) -> list[Path]:
    groups = sorted((folder / "trials").glob(".programs/*.json"))
    return [folder / "trials.json", *sorted((folder / "outcomes").iterdir()), *groups]
