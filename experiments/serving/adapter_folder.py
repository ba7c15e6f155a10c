"""The folder with the adapters that a server may load: the only part of the disk that it reads.

Adapters are named by clients, so a name is nothing but the name of an entry: no path leads out.
They are read onto the base of the server, whoever has trained them.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import lora_jax as lj
import variants
from configs.settings import ClassifierConfig
from experiments.runs.finished_run import ADAPTER
from experiments.runs.head_file import HEAD_FILE, with_head
from experiments.serving.base_model import BaseModel
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.own_model import require_published
from lora_jax.adapters.base_digest import base_digests
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.files.tree_file import load_tree
from lora_jax.interchange.names import names_of, of_class_with_head
from lora_jax.interchange.peft_folder import CONFIG, WEIGHTS, PeftFolder
from lora_jax.methods.rank_budget import BUDGET
from lora_jax.models.published.weight_files import read_json
from lora_jax.partition import flatten
from lora_jax.records import run_record
from lora_jax.serving.adapter_store import UnknownAdapterError
from lora_jax.serving.entries import Adapter
from lora_jax.transform.adapt import init_shapes
from lora_jax.transform.placement import AdaptedSpec, Frozen

RUN_CONFIG = "config.json"
LONGEST = 128
"""The most characters of an adapter's name."""
ATTEMPTS = 5
"""How often a folder is read that changes while it is read."""


class AdapterFolder:
    """Adapters by the names of their folders: those of runs, of `save_adapter`, and of PEFT.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the folder is itself an adapter.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"--adapters={root}: no such folder")
        if any((root / file).is_file() for file in (ADAPTER, CONFIG)):
            raise ValueError(
                f"--adapters={root} is itself an adapter: give the folder that holds it, "
                f"--adapters={root.absolute().parent}"
            )
        self.root = root

    def names(self) -> list[str]:
        """The adapters that there are now, in order. What is not an adapter is left out."""
        found = []
        for entry in sorted(self.root.iterdir()):
            try:
                self.files(entry.name)
            except (LookupError, OSError, ValueError):
                continue
            found.append(entry.name)
        return found

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of an adapter: its config, if it has one, and its weights.

        Raises:
          UnknownAdapterError: no entry of the folder has this name.
          ValueError: the entry is not an adapter, or a link leads out of the folder.
        """
        # Unlike a Path's, this is_dir is false for a name that the file system finds too long.
        if not is_name(name) or not os.path.isdir(self.root / name):
            entries = self.root.iterdir() if is_name(name) else ()
            known = sorted(entry.name for entry in entries if entry.is_dir())
            raise UnknownAdapterError(name[:LONGEST], known)
        folder = self.root / name
        for files in ((CONFIG, WEIGHTS), (RUN_CONFIG, ADAPTER), (ADAPTER,)):
            paths = tuple(folder / file for file in files)
            if all(path.is_file() for path in paths):
                break
        else:
            raise ValueError(f"'{name}' has neither {CONFIG} and {WEIGHTS} nor {ADAPTER}")
        if files[0] == CONFIG and (folder / HEAD_FILE).exists():
            paths = (*paths, folder / HEAD_FILE)
        top = self.root.resolve()
        if not all(path.resolve().is_relative_to(top) for path in paths):
            raise ValueError(f"'{name}' has a link that leads out of the folder of adapters")
        return paths

    def digest(self, name: str) -> str:
        """What names one version of an adapter: a sha256 in hexadecimal.

        It is that of the lines of `sha256sum` for its files, in the order of `files`. Errors are
        those of `files`.
        """
        lines = []
        for path in self.files(name):
            with path.open("rb") as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{own}  {path.name}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_name(name: str) -> bool:
    """Whether a text can be the name of an adapter: that of an entry, which is not hidden."""
    plain = name.isprintable() and not {"/", "\\"} & {*name}
    return plain and not name.startswith(".") and 0 < len(name) <= LONGEST


class AdapterLoader:
    """Gives an adapter by name, with the digest of its files: what an `AdapterStore` calls."""

    def __init__(self, base: BaseModel, folder: AdapterFolder):
        self._base, self._folder = base, folder
        self._arrays: dict[str, Any] = flatten(base.params)[0]
        onto = base.train, base.params, *base.inputs
        self._readers = {
            head: lj.PeftReader(variants.from_peft, names_of(base.shape, head), *onto)
            for head in (False, True)
        }
        self._shapes: dict[lj.Adapted, tuple[Any, lj.Frozen]] = {}

    def __call__(self, name: str) -> tuple[Adapter, str]:
        """The adapter, (trainable, frozen), and its digest.

        Raises:
          UnknownAdapterError: there is none of this name.
          ValueError, OSError: one line on why it cannot be read, or is not of this base.
        """
        digest = self._folder.digest(name)
        for _ in range(ATTEMPTS):
            try:
                found = self._read(self._folder.files(name))
            except (ValueError, OSError):
                if digest == (digest := self._folder.digest(name)):
                    raise
                continue
            if digest == (digest := self._folder.digest(name)):
                return found, digest
        raise ValueError(f"'{name}' changes while it is read: replace its folder at once")

    def _read(self, files: tuple[Path, ...]) -> Adapter:
        folder = files[0].parent
        found = self._of_peft(folder) if files[0].name == CONFIG else self._own(folder)
        if missing := [path for path in self._base.fresh if path not in found[0]["params"]]:
            raise ValueError(
                f"{folder}: the adapter has no '{missing[0]}', nor has the base: serve it on a "
                "base with its head, or train the whole head with the adapter"
            )
        return found

    def _of_peft(self, folder: Path) -> Adapter:
        base, source, head = self._base, PeftFolder(folder), folder / HEAD_FILE
        if base.labels and head.is_file():  # what exports write for heads that read the mean
            self._require_pool(folder, "mean")
        elif base.labels and source.config.get("task_type") == "SEQ_CLS":
            self._require_pool(folder, "cls")
        found = self._readers[of_class_with_head(base.shape, source.names())](folder)
        if base.labels and head.is_file():
            found = with_head(found, head)
        return found.trainable, found.frozen

    def _own(self, folder: Path) -> Adapter:
        """An adapter of `save_adapter`; its config says what it adapts.

        Nothing is drawn: the shapes of the adapter are enough to read the file.
        """
        config = parse({**_config(folder), "start_from": None})
        require_published(config, f"{folder}: serving")
        if config.quantize.storage != "none":
            raise ValueError(
                f"{folder}: the adapter's base was quantised as {config.quantize.storage}, "
                "and the server's is not quantised"
            )
        base = self._base
        if isinstance(config, ClassifierConfig) != bool(base.labels):
            raise ValueError(
                f"{folder}: the adapter belongs to another kind of model than the server's"
            )
        if isinstance(config, ClassifierConfig):
            self._require_pool(folder, config.model.pool)
            self._require_classes(folder)
        targets = from_config.make_targets(config, _steps(folder))
        if any(each.allots for each in targets.values()):
            raise ValueError(
                f"{folder}: its ranks were chosen from data, so its config does not tell them: "
                "export it with --as=peft, and serve that folder"
            )
        adapted = from_config.adapt(config, base.train, targets)
        if (shapes := self._shapes.get(adapted)) is None:
            shapes = init_shapes(adapted, jax.random.key(0), base.params, *base.inputs)
            self._shapes[adapted] = shapes
        trainable, frozen = shapes
        own = {path: self._arrays[path] for path in frozen.base}
        frozen = dataclasses.replace(frozen, base=own)
        known = self._digests
        digests = {path: known[path] for path in own} if known.keys() >= own.keys() else None
        trainable, frozen, _ = lj.load_adapter(folder, trainable, frozen, digests=digests)
        return trainable, frozen

    def _require_pool(self, folder: Path, reads: str) -> None:
        if reads != self._base.pool:
            raise ValueError(
                f"{folder}: its head reads {reads}, and the server was started with "
                f"--pool={self._base.pool}"
            )

    def _require_classes(self, folder: Path) -> None:
        """Refuse numbers, and names that the run has for other classes; others only rename."""
        record = run_record.read(folder)
        own = record.label_names if record else None
        if own is None:  # of an earlier version, or of `save_adapter`
            return
        if not own:
            raise ValueError(f"{folder}: it predicts numbers, and the server's model has classes")
        pairs = zip(own, self._base.labels, strict=False)
        if any(name != given and given in own for name, given in pairs):
            raise ValueError(f"{folder}: its classes are --labels={','.join(own)}, in this order")

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        """Those of all parameters of the base, which is read once for all adapters."""
        return base_digests(Frozen(self._arrays, {}, AdaptedSpec(None, (), (), ())))


def _steps(folder: Path) -> int:
    """The steps of the run that trained an adapter, if it has a budget of ranks by step."""
    file = SafetensorsBytes(folder / ADAPTER)
    budgets = [file.shape(name) for name in file.names() if name.endswith(f"/{BUDGET}")]
    return budgets[0][0] - 1 if budgets else from_config.FEW_STEPS


def _config(folder: Path) -> dict[str, Any]:
    """The config of the run that trained an adapter, from beside the file or from inside."""
    if (folder / RUN_CONFIG).is_file():
        return read_json(folder / RUN_CONFIG)
    _, meta = load_tree(folder)
    if not isinstance(meta.get("config"), dict):
        raise ValueError(f"{folder / ADAPTER} does not say what it adapts, nor does {RUN_CONFIG}")
    if (name := _own_variant(meta["config"])) is not None:
        raise ValueError(
            f"{folder / ADAPTER} names a variant of somebody's own, {name}: it is imported only if "
            f"{RUN_CONFIG} of its run lies beside it"
        )
    return meta["config"]


def _own_variant(config: Mapping[str, Any]) -> str | None:
    """The first module that a config names as a variant, and that is none of `variants/`."""
    targets = config.get("targets")
    targets = targets if isinstance(targets, list) else ()
    changed = [each[1] for each in targets if isinstance(each, list | tuple) and len(each) > 1]
    named = (config.get("variant"), *changed)
    names = [each.get("name") for each in named if isinstance(each, dict)]
    return next((name for name in names if isinstance(name, str) and "." in name), None)
