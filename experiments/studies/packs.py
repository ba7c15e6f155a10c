"""Pack the runs of studies, each beside its registration, and unpack them."""

from collections.abc import Iterator
from pathlib import Path

from experiments.analysis.recorded_runs import REGISTRATION
from experiments.plurals import count
from experiments.runs import packing
from lora_jax.records import packed
from lora_jax.suggest import nearest_path


def pack(results: Path) -> Iterator[str]:
    """Pack the runs below a folder, and say in lines what was done and which stay folders.

    Raises:
      ValueError, FileNotFoundError: no such folder, no runs, or as `packing.pack`.
    """
    if not results.is_dir():
        near = nearest_path(results, Path.is_dir)
        raise FileNotFoundError(f"--results {results}: no such folder{near}")
    if not (homes := _homes(results)):
        if not (there := list(packed.around(results))):
            raise ValueError(f"--results={results}: no run to pack lies below")
        yield f"all {sum(len(runs) for _, runs in there):,} runs are packed already"
    for home, runs in homes.items():
        why = {run: said for run in runs if (said := packing.reason_to_stay(run))}
        if mine := [run for run in runs if run not in why]:
            packing.pack(home, mine)
            yield f"{count(len(mine), 'run')} packed: {home / packed.RECORDS}"
        yield from (f"{run} stays a folder: {said}" for run, said in why.items())


def unpack(folder: Path) -> Iterator[str]:
    """Make folders again of the packed runs in and below a folder, and say so.

    Raises:
      ValueError: there are none, or as `packing.unpack`.
    """
    if not (found := list(packed.around(folder))):
        raise ValueError(f"--unpack={folder}: no packed run lies there")
    for there, runs in found:
        packing.unpack(there, runs)
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
    for pack, own in packed.around(results):
        runs |= {pack.folder / run for run in own if (pack.folder / run).is_dir()}
    for run in sorted(runs):
        within = [each for each in run.parents if each.is_relative_to(results)]
        studies = [each for each in within if (each / REGISTRATION).exists()]
        found.setdefault(studies[0] if studies else results, []).append(run)
    return found
