"""Pack finished runs into the three files of `lora_jax.records.packed`, and unpack them.

Either way, what is deleted has been compared with what takes its place, as it lies on the disk. A
process killed at any moment leaves each run in one form at least, and the same command finishes.
A run's `record.json` is the first file to go and the last to come, so where one is, all are.
"""

import contextlib
import fcntl
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from experiments.command_names import shown
from experiments.runs import predictions
from lora_jax.files import archives, json_text
from lora_jax.files.atomic import open_folder, write_atomically
from lora_jax.messages import count, nearest_path
from lora_jax.records import metrics_log, packed, run_record
from lora_jax.records.packed import METRICS, PREDICTIONS, RECORDS, Pack

FILES = ("record.json", "config.json", "metrics.jsonl", predictions.NAME)
"""What the folder of a run holds that can be packed."""
REGISTRATION = "study.json"
"""The file of a study's registration, in the folder of its runs, where they are packed."""


def require_loose(folder: Path) -> None:
    """Raise a ValueError, which says how to unpack it, if the run of this folder is packed."""
    if found := packed.holder(folder):
        raise ValueError(
            f"{folder} is packed, in {found[0].folder / RECORDS}: {shown('pack')} "
            f"--unpack={folder} makes it a folder again"
        )


def reason_to_stay(run: Path) -> str:
    """Why a run with a record stays a folder; empty if it can be packed."""
    others = sorted(path.name for path in run.iterdir() if path.name not in FILES)
    if (run.parent.parent / "trials.json").exists():
        return "it belongs to a sweep, which continues from its folders"
    return f"it also holds {', '.join(others[:3])}" if others else ""


def pack_below(results: Path) -> Iterator[str]:
    """Pack the runs below a folder, and say in lines what was done and which stay folders.

    Raises:
      ValueError, FileNotFoundError: no such folder, no runs, or as `pack`.
    """
    if not results.is_dir():
        near = nearest_path(results, Path.is_dir)
        raise FileNotFoundError(f"--results {results}: no such folder{near}")
    if not (homes := _homes(results)):
        if not (there := list(packed.around(results))):
            raise ValueError(f"--results={results}: no run to pack lies below")
        yield f"all {sum(len(runs) for _, runs in there):,} runs are packed already"
    for home, runs in homes.items():
        why = {run: said for run in runs if (said := reason_to_stay(run))}
        if mine := [run for run in runs if run not in why]:
            pack(home, mine)
            yield f"{count(len(mine), 'run')} packed: {home / RECORDS}"
        yield from (f"{run} stays a folder: {said}" for run, said in why.items())


def unpack_below(folder: Path) -> Iterator[str]:
    """Make folders again of the packed runs in and below a folder, and say so.

    Raises:
      ValueError: there are none, or as `unpack`.
    """
    if not (found := list(packed.around(folder))):
        raise ValueError(f"--unpack={folder}: no packed run lies there")
    for there, runs in found:
        unpack(there, runs)
        yield f"{count(len(runs), 'run')} unpacked: {there.folder}"


def _homes(results: Path) -> dict[Path, list[Path]]:
    """The folders of recorded runs below a folder, by where they are packed.

    That is the folder of their study, or else this one. Folders that a killed process has left of
    packed runs are among them.

    Raises:
      ValueError: the folder is a part of a study.
    """
    if study := next((each for each in results.parents if (each / REGISTRATION).exists()), None):
        raise ValueError(f"--results={results} is a part of a study: give {study}")
    found: dict[Path, list[Path]] = {}
    runs = {path.parent for path in results.rglob("record.json")} - {results}
    for there, own in packed.around(results):
        runs |= {there.folder / run for run in own if (there.folder / run).is_dir()}
    for run in sorted(runs):
        within = [each for each in run.parents if each.is_relative_to(results)]
        studies = [each for each in within if (each / REGISTRATION).exists()]
        found.setdefault(studies[0] if studies else results, []).append(run)
    return found


def pack(home: Path, runs: Sequence[Path]) -> None:
    """Pack runs into the three files of a folder, beside those that it has, and delete theirs.

    Raises:
      ValueError: a run is damaged, or could not be rebuilt exactly. Its folder stays then.
    """
    with _alone(home):
        there = Pack(home)
        old = [*there.records] if (home / RECORDS).exists() else []
        names = {run.relative_to(home).as_posix(): run for run in runs}
        texts, logs, arrays = _content(there, old)
        for name, run in names.items():
            if name in texts:
                _require_same(run, there, name)
            else:
                texts[name], logs[name], arrays[name] = _read(run)
        if texts.keys() - set(old):
            _write(home, texts, logs, arrays)
        there = Pack(home)
        for name, run in names.items():
            _require_same(run, there, name)
        for run in runs:
            for name in FILES:
                (run / name).unlink(missing_ok=True)
            _remove_empty(run, home)


def unpack(there: Pack, runs: Sequence[str]) -> None:
    """Make folders again of packed runs; the last of a pack takes its files with it.

    Raises:
      ValueError: the pack is damaged, or a folder has other content.
    """
    home = there.folder
    with _alone(home):
        for run in runs:
            _require_same(home / run, there, run)
        for run in runs:
            if kept := there.arrays(run):
                predictions.write_arrays(home / run / predictions.NAME, kept)
            for name, content in reversed(_texts(there, run).items()):
                write_atomically(home / run / name, content)
        for run in runs:
            _require_same(home / run, there, run, whole=True)
        if rest := [each for each in there.records if each not in runs]:
            _write(home, *_content(there, rest), shrinks=True)
        else:
            for name in (RECORDS, METRICS, PREDICTIONS):
                (home / name).unlink()


_Content = tuple[dict[str, bytes], dict[str, bytes], dict[str, dict[str, np.ndarray]]]


def _content(there: Pack, runs: Sequence[str]) -> _Content:
    return (
        {run: there.records[run] for run in runs},
        {run: there.log(run) for run in runs},
        {run: there.arrays(run) for run in runs},
    )


def _read(run: Path) -> tuple[bytes, bytes, dict[str, np.ndarray]]:
    """The record of a run's folder, as the text of a line, its metrics and its predictions."""
    found, metrics = run_record.read_sealed(run), run / "metrics.jsonl"
    assert found is not None
    if metrics.exists():
        metrics_log.read_metrics(metrics, found[1], found[0].metrics_check)
    elif found[0].metrics_check is not None:
        raise ValueError(f"{run} has lost its metrics.jsonl, whose last check its record has")
    *lines, torn = (log := metrics.read_bytes() if metrics.exists() else b"").split(b"\n")
    if torn or not all(line.startswith(b"{") for line in lines):
        raise ValueError(f"{metrics} has a torn line, or one that does not begin with its object")
    arrays: dict[str, np.ndarray] = {}
    if predictions.read(run):
        arrays = archives.read_arrays(run / predictions.NAME)
    if strange := [name for name in arrays if "/" in name.removesuffix("/label")]:
        raise ValueError(f"{run / predictions.NAME}: a part's name, {strange[0]}, has a slash")
    values = json_text.read_object(run / "record.json")
    for name, value in (("record.json", values), ("config.json", values["config"])):
        if (run / name).read_bytes() != run_record.pretty(value):
            raise ValueError(f"{run / name} is not as the record's values would be written again")
    text = json.dumps(values, allow_nan=False).encode()
    return text, log, arrays


def _write(
    home: Path,
    texts: Mapping[str, bytes],
    logs: Mapping[str, bytes],
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    shrinks: bool = False,
) -> None:
    """Write the three files of a pack.

    Args:
      shrinks: whether the pack has more runs now. Then its records are written first, and else
        last, so that a run which they name has its metrics and predictions at any moment.
    """
    names = sorted(texts, key=lambda name: PurePosixPath(name).parts)
    metrics = [_line(name, line) for name in names for line in logs[name].split(b"\n")[:-1]]
    records = [_line(name, texts[name]) for name in names]
    if shrinks:
        write_atomically(home / RECORDS, gzip.compress(b"".join(records), mtime=0))
    predictions.write_arrays(home / PREDICTIONS, _by_run({name: arrays[name] for name in names}))
    write_atomically(home / METRICS, gzip.compress(b"".join(metrics), mtime=0))
    if not shrinks:
        write_atomically(home / RECORDS, gzip.compress(b"".join(records), mtime=0))


def _line(run: str, text: bytes) -> bytes:
    return b'{"run": ' + json.dumps(run).encode() + b", " + text.removeprefix(b"{") + b"\n"


def _by_run(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all runs, by their names in the pack."""
    found: dict[str, np.ndarray] = {}
    labels: dict[str, dict[str, np.ndarray | None]] = {}
    for run, own in arrays.items():
        for part in own:
            if not part.endswith("/label"):
                found[f"{run}/{part}"] = own[part]
                labels.setdefault(part, {})[run] = own.get(f"{part}/label")
    for part, by_run in labels.items():
        found.update(_shared(PurePosixPath(), part, by_run))
    return found


def _shared(
    folder: PurePosixPath, part: str, labels: Mapping[str, np.ndarray | None]
) -> Iterator[tuple[str, np.ndarray]]:
    """The labels of the runs below a folder: once if all have the same, or else by folder."""
    first, *others = labels.values()
    if first is not None and all(each is not None and _equal(first, each) for each in others):
        yield packed.labels_name(str(folder), part), first
        return
    below: dict[PurePosixPath, dict[str, np.ndarray | None]] = {}
    for run, own in labels.items():
        if PurePosixPath(run) != folder:
            child = folder / PurePosixPath(run).relative_to(folder).parts[0]
            below.setdefault(child, {})[run] = own
    for child, own in below.items():
        yield from _shared(child, part, own)


def _texts(there: Pack, run: str) -> dict[str, bytes]:
    """The files of a packed run but its predictions, as it wrote them."""
    values = there.values(run)
    texts = {
        "record.json": run_record.pretty(values),
        "config.json": run_record.pretty(values["config"]),
    }
    return texts | ({"metrics.jsonl": log} if (log := there.log(run)) else {})


def _require_same(folder: Path, there: Pack, run: str, whole: bool = False) -> None:
    """Raise a ValueError if files in a run's folder are not exactly what a pack makes of the run.

    Args:
      whole: whether all of them must be there.
    """
    texts, arrays = _texts(there, run), there.arrays(run)
    wrong = [
        name
        for name in FILES[:3]
        if ((folder / name).exists() and (folder / name).read_bytes() != texts.get(name, b""))
        or (whole and name in texts and not (folder / name).exists())
    ]
    path = folder / predictions.NAME
    kept = archives.read_arrays(path) if path.exists() else {}
    if (whole or path.exists()) and (
        kept.keys() != arrays.keys() or not all(_equal(kept[name], arrays[name]) for name in kept)
    ):
        wrong.append(predictions.NAME)
    if wrong:
        raise ValueError(
            f"{folder / wrong[0]} is not what {there.folder / RECORDS} makes of this run: no file "
            "of a run was deleted"
        )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same bit for bit."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()


def _remove_empty(folder: Path, home: Path) -> None:
    """Remove a folder and those above it, up to the home, while they are empty."""
    with contextlib.suppress(OSError):  # stops at the first that is not empty
        while folder != home:
            folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let no other process pack or unpack runs of this folder meanwhile."""
    with open_folder(home) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{home}: another process packs or unpacks its runs") from None
        except OSError:
            pass  # a file system without locks
        yield
