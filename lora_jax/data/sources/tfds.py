"""GLUE and SuperGLUE through tensorflow-datasets, without TensorFlow.

Builders, splits and checksums are those of tensorflow-datasets. Its uses of TensorFlow are avoided:
files are ArrayRecords, zips are unpacked beforehand, and a dtype is NumPy's.
"""

import importlib
import socket
import tempfile
import types
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.data.sources import tsv
from lora_jax.data.task import Task
from lora_jax.data.tasks import Record, TaskPart, TaskSpec, assemble
from lora_jax.files.archives import open_zip
from lora_jax.files.published_paths import cache_folder
from lora_jax.messages import first_line

_CHUNK = 10_000


def load(name: str, folder: str | Path | None = None, prepared: str | Path | None = None) -> Task:
    """Load the task `name` of `lora_jax.data.tasks.SPECS`.

    Args:
      folder: a data folder of tensorflow-datasets in which the task is prepared as ArrayRecords, or
        a folder with the official downloads (`CoLA.zip`, ...), whose checksums are verified.
        Without it, they are downloaded. GLUE's labelled diagnostic set (`diagnostic-full.tsv`),
        which tensorflow-datasets lacks, is read from this folder too.
      prepared: where the task is prepared from the downloads, and found the next time; by default a
        folder in the user's cache.

    Raises:
      ModuleNotFoundError: tensorflow-datasets, or a package that it needs, is not installed.
      FileNotFoundError: `folder` does not exist, or has neither.
      ValueError: the data cannot be downloaded, prepared or read, or has other classes.
    """
    data_dir = Path(prepared) if prepared is not None else cache_folder() / "tfds"

    def read(name: str, spec: TaskSpec, part: TaskPart) -> list[Record] | None:
        if not part.split:
            return _beside(folder, spec, part)
        return read_part(find(name, spec, None if folder is None else Path(folder), data_dir), part)

    return assemble(name, read)


def find(name: str, spec: TaskSpec, folder: Path | None, data_dir: Path) -> Any:
    """The builder of a task, with its data prepared."""
    if not spec.archives:
        raise ValueError(f"tensorflow-datasets lacks {name}; take data.source 'tsv'")
    tfds = _library(name)
    if folder is not None and (ready := _ready(tfds, name, folder)) is not None:
        return ready
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    classes = getattr(builder.info.features["label"], "names", None)
    if classes != (None if spec.label_names is None else list(spec.label_names)):
        raise ValueError(f"{name} has other classes in this tensorflow-datasets: {classes}")
    if builder.is_prepared():
        return builder
    if folder is not None and (missing := [a for a in spec.archives if not (folder / a).is_file()]):
        raise FileNotFoundError(
            f"{folder} has neither {name} as ArrayRecords nor its download, {', '.join(missing)}"
        )
    downloads = data_dir / "downloads"
    there = [any(downloads.rglob(f"*{archive}*")) for archive in spec.archives]
    if folder is None and not all(there):
        _check_reachable(name, builder, spec)
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            _prepare(tfds, builder, folder, downloads, Path(unpacked))
    except Exception as error:  # network, disk, checksum: tfds has no class for them
        advice = "" if folder else _advice(name, spec)
        raise ValueError(
            f"tensorflow-datasets cannot prepare {name}: {first_line(error)}{advice}"
        ) from error
    return builder


def _advice(name: str, spec: TaskSpec) -> str:
    archives = ", ".join(spec.archives)
    return f"; set data.folder to a folder with {archives}, or {tsv.ways(name)}"


def _check_reachable(name: str, builder: Any, spec: TaskSpec):
    """Raise a ValueError at once without a network: tensorflow-datasets would try for minutes."""
    if urllib.request.getproxies():
        return  # proxies resolve the host names
    urls = [url for url, info in builder.url_infos.items() if info.filename in spec.archives]
    for host in dict.fromkeys(urllib.parse.urlsplit(url).hostname for url in urls):
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise ValueError(
                f"tensorflow-datasets cannot download {name}: no connection to {host} "
                f"({error.strerror or error}){_advice(name, spec)}"
            ) from error


def read_part(builder: Any, part: TaskPart) -> list[Record]:
    """The records of one split in the order of the official file; the stored order is shuffled."""
    try:
        items = _items(builder.as_data_source(part.split))
        return [
            Record(
                {key: each.decode() for key, each in item.items() if isinstance(each, bytes)},
                item["label"] if part.labelled else None,
            )
            for item in sorted(items, key=lambda item: int(item["idx"]))
        ]
    except Exception as error:  # damaged records: tensorflow-datasets has no class for them
        said = first_line(error)
        raise ValueError(f"{builder.data_dir}: {part.split} cannot be read: {said}") from error


def _beside(folder: str | Path | None, spec: TaskSpec, part: TaskPart) -> list[Record] | None:
    """The records of a part that only a file in the folder has; None if there is no such file."""
    files = [] if folder is None else [Path(folder) / file for file in part.files]
    found = [file for file in files if file.is_file()]
    return tsv.read_part(found[0], spec, part) if found else None


def _items(source: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, len(source), _CHUNK):
        yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))


def _library(name: str) -> Any:
    try:
        tfds = importlib.import_module("tensorflow_datasets")
        # Importing a builder's module registers its name.
        module = importlib.import_module(f"tensorflow_datasets.text.{name.split('/')[0]}")
        for needed in ("array_record", "importlib_resources"):
            importlib.import_module(needed)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"source 'tfds' needs {error.name}: pip install \"lora-jax[tfds]\"", name=error.name
        ) from None
    if name.startswith("super_glue/"):
        # This module uses TensorFlow only for the name of a dtype.
        module.__dict__["tf"] = types.SimpleNamespace(int32=np.int32)
    tfds.disable_progress_bar()
    return tfds


def _ready(tfds: Any, name: str, folder: Path) -> Any:
    """The builder of the newest version that is prepared in a folder; None if there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = (path.parent for path in folder.glob(f"{name}/*/dataset_info.json"))
    versions = sorted(found, key=_version)
    if not versions:
        return None
    try:
        builder = tfds.builder_from_directory(versions[-1])
    except Exception as error:  # its JSON files are damaged
        raise ValueError(f"{versions[-1]} cannot be read: {first_line(error)}") from error
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{versions[-1]} holds {builder.info.file_format.value} files, which only TensorFlow "
            "can read; prepare it with file_format='array_record'"
        )
    return builder


def _version(folder: Path) -> list[int]:
    """What versions are sorted by: 10.0.0 is newer than 2.0.0."""
    return [int(part) if part.isdigit() else -1 for part in folder.name.split(".")]


def _prepare(tfds: Any, builder: Any, folder: Path | None, downloads: Path, unpacked: Path):
    config = tfds.download.DownloadConfig(manual_dir=folder, extract_dir=unpacked)
    url = builder.builder_config.data_url
    if url.endswith(".zip"):
        manager = tfds.download.DownloadManager(
            download_dir=downloads,
            manual_dir=folder,
            url_infos=builder.url_infos,
            dataset_name=builder.name,
        )
        archive = Path(manager.download(url))
        with open_zip(archive) as file:
            file.extractall(unpacked / f"ZIP.{archive.name}")  # tfds looks here before it unpacks
    builder.download_and_prepare(download_dir=downloads, download_config=config)
