"""What initialisations from data see of a run's first batches: gathered once, and kept.

A file in the run's folder keeps it for the run, which does not gather it again when it is resumed.
Another one, in the user's cache, is shared by all runs that agree in the model, the data, the seed,
the batches, and in what is asked for: so by the trials of a sweep over learning rates.

Of inputs, padding does not count, nor do rows that only fill a batch.
"""

import dataclasses
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lora_jax as lj
from configs.settings import RunConfig, TextTrainSettings, TrainSettings
from experiments.setup import from_config, processes
from experiments.setup.forward_pass import model_inputs
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.base import Seen
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.files.json_text import config_digest, plain
from lora_jax.sharding.mesh import ROWS, said_by_all
from lora_jax.transform.adapt import seen_shapes

FILE = "seen.safetensors"
BATCHES = 8
"""How many batches are seen if the config does not say."""
MOST = 2 * 2**30
"""Bytes to keep in the user's cache; the oldest files make room."""
_FORMAT = 2  # raise it when what is gathered changes


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What was seen of each weight, and what a record says of it."""

    seen: Mapping[str, Seen]
    said: Mapping[str, Any]
    """`batches` and `examples`, the first of training; `seconds`; `digest` of what it is of.

    `data` and `weights` are the digests of these, which a run that goes on must still have.
    """

    def save(self, path: Path) -> None:
        """Write it, unless it is there. With several processes, all call this, and one writes."""
        if not processes.first(path.exists):
            lj.save_seen(path, self.seen, self.said)


def gathered(
    config: RunConfig,
    loaded: TaskAndModel,
    adapted: lj.Adapted,
    key: Array,
    inputs: tuple[Any, ...],
    mesh: Mesh | None,
    folder: Path | None,
) -> Gathered | None:
    """What the methods of a run ask to see; None if they ask for nothing.

    Args:
      key, inputs: what `adapted.init` gets.
      folder: the run's, which has it if the run was begun before.
    """
    if not (wanted := seen_shapes(adapted, *inputs)):
        return None
    digest = _digest(config, loaded, wanted)
    cached = data.cache_folder() / "seen" / f"{digest}.safetensors"
    known = [cached] if folder is None else [folder / FILE, cached]
    if config.start_from:  # it replaces the factors, and must find their ranks
        start = Path(from_config.make_start(config.start_from)[0])
        known.insert(0, (start.parent if start.suffix == ".safetensors" else start) / FILE)
    made_of = {"data": loaded.texts.task.digest(), "weights": loaded.weights_digest}
    for path in known:
        if all(said_by_all(path.exists())):  # the cache of another machine may be another one
            try:
                found = Gathered(*lj.load_seen(path))
            except ValueError as error:
                # Only the cache's file can be made again, and all processes would have to do so.
                if path != cached or jax.process_count() > 1:
                    raise
                warnings.warn(f"it is made again: {error}", stacklevel=2)
                continue
            if folder is not None and path == folder / FILE and not config.start_from:
                _require_same(path, found.said, made_of)
            return found
    began = time.perf_counter()
    plan = loaded.texts.plan(config.train.batch_size, config.seed)
    planned = list(itertools.islice(plan.start(), config.train.init_batches or BATCHES))
    batches = list(_batches(config.train, loaded.texts, mesh, planned))
    given: Any = {"batches": batches, "loss": _loss(loaded.texts), "counts": _counts}
    seen = adapted.gather(key, *inputs, **given)
    seen = jax.device_get(processes.whole(seen))
    said = {
        "batches": len(planned),
        "examples": sum(len(batch.indices) for batch in planned),
        "seconds": time.perf_counter() - began,
        "digest": digest,
        **made_of,
    }
    try:
        lj.save_seen(cached, seen, said)
        if processes.writes():
            keep_newest(cached.parent, MOST)
    except OSError as error:
        warnings.warn(f"cannot keep what was gathered in {cached.parent}: {error}", stacklevel=2)
    return Gathered(seen, said)


def _require_same(path: Path, said: Mapping[str, Any], made_of: Mapping[str, str]) -> None:
    """Raise a ValueError if a run's file is of other data or weights than the run has now."""
    for name, digest in made_of.items():
        if said.get(name, digest) != digest:  # files of earlier versions do not say
            raise ValueError(f"{path} belongs to a run with other {name}; name another folder")


def keep_newest(folder: Path, most: int) -> None:
    """Delete the oldest files of a folder of what was seen, until the rest has `most` bytes."""
    files = ((path, path.stat()) for path in folder.glob("*.safetensors"))
    left = most
    for path, about in sorted(files, key=lambda each: each[1].st_mtime_ns, reverse=True):
        left -= about.st_size
        if left < 0:
            path.unlink(missing_ok=True)


def _digest(config: RunConfig, loaded: TaskAndModel, wanted: Mapping[str, Seen]) -> str:
    """A digest of everything that what is seen depends on."""
    shapes = {
        path: {name: list(leaf.shape) for name, leaf in each._asdict().items()}
        for path, each in wanted.items()
    }
    named = ("model", "data", "quantize", "also_train")
    sections = plain({name: config.plain[name] for name in named}, "config")
    train = config.train
    settings = (config.seed, train.batch_size, train.accumulate, train.init_batches or BATCHES)
    smoothing = train.label_smoothing if isinstance(train, TextTrainSettings) else 0.0
    return config_digest(
        {
            **sections,
            "format": _FORMAT,
            "jax": jax.__version__,
            "weights": loaded.weights_digest,
            "reading": loaded.reading_digest,
            "texts": loaded.texts.task.digest(),
            "settings": [*settings, smoothing],
            "shapes": shapes,
        }
    )


def _batches(
    section: TrainSettings,
    texts: TokenisedTask,
    mesh: Mesh | None,
    planned: Sequence[data.PlannedBatch],
) -> Iterator[Any]:
    """The arrays of batches, in as many parts as training takes them in."""
    rows = None if mesh is None else NamedSharding(mesh, PartitionSpec(ROWS))
    parts = section.accumulate
    for batch in planned:
        whole = texts.batch("train", batch, section.batch_size, rows)
        for part in range(parts):
            yield jax.tree.map(lambda x, start=part: x[start::parts], whole)


def _loss(texts: TokenisedTask) -> Any:
    """The mean loss of a batch's examples, without dropout."""

    def loss(model: Any, batch: Any) -> Array:
        each = texts.loss(model(*model_inputs(batch)), batch)
        return (each * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1e-6)

    return loss


def _counts(batch: Mapping[str, Array]) -> Array:
    """1 for each token of an example, 0 for padding, (B, T); of arrays, by rows, (B,)."""
    if "attention_mask" not in batch:
        return batch["weight"] > 0
    return batch["attention_mask"] * (batch["weight"] > 0)[:, None]
