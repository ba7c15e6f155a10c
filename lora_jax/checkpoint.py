"""Training states in Orbax, asynchronously and with digests of our own.

A state is saved as a flat {path: array}, only its leaves: named tuples, empty optimiser states and
masked nodes need nothing special, and a mismatch can name a path. Orbax does not notice flipped
bits and does not skip a step that it cannot read: here every leaf carries its sha256, and a damaged
step gives way to the one before it.
"""

import concurrent.futures
import math
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lora_jax import records
from lora_jax.leaves import digest, first_line, is_key, type_name


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them and, optionally, the best.

    `best=("accuracy", "max")` also keeps the step of the highest `meta["accuracy"]` ("min": the
    lowest; of equals the first). One run at a time may use a folder. Use it as a context manager or
    call `close`: only then is the last save sure to be on disk.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        best: tuple[str, Literal["max", "min"]] | None = None,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least the newest checkpoint is kept")
        if best is not None and (len(best) != 2 or best[1] not in ("max", "min")):
            raise ValueError(f"best is {best!r}: expected (metric, 'max') or (metric, 'min')")
        self.folder, self.keep, self.best = Path(folder).absolute(), keep, best
        # Alone, a process writes from a thread of its own, which blocks training less than Orbax's
        # asynchronous saving does. Several have to enter Orbax's barriers in the same order.
        self._alone = jax.process_count() == 1
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, enable_async_checkpointing=not self._alone
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future | None = None
        self._scores: dict[int, float | None] = {}

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None) -> bool:
        """Starts to save a state (any pytree) and JSON values; the state may be donated at once.

        Waits for the save before it, raising its error if it failed. Returns False, saving nothing,
        where the step is there already.
        """
        self.wait()
        if step in self.steps():
            return False
        leaves = _flatten(state)
        types = {name: type_name(leaf) for name, leaf in leaves.items()}
        arrays = {name: _copy(leaf) for name, leaf in leaves.items()}
        values = records.plain(meta or {}, "meta")
        if self._alone:
            self._pending = self._thread.submit(self._write, step, types, arrays, values)
        else:
            self._write(step, types, arrays, values)
        return True

    def _write(self, step: int, types: dict, arrays: dict, meta: dict) -> None:
        leaves = {name: [types[name], digest(array)] for name, array in arrays.items()}
        body = {"step": step, "meta": meta, "leaves": leaves}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({n: a for n, a in arrays.items() if a.size}),
            meta=ocp.args.JsonSave({"body": body, "sha256": records.config_digest(body)}),
        )
        self._manager.save(step, args=items, force=True)
        if self._alone:
            self._retire()

    def _retire(self) -> None:
        steps = self.steps()
        for step in set(steps) - {*steps[-self.keep :], self._best(steps)}:
            self._manager.delete(step)

    def _best(self, steps: list[int]) -> int | None:
        return next(iter(self._ranked(steps)), None)

    def _ranked(self, steps: list[int]) -> list[int]:
        """The steps that have the metric of `best`, the best one first, of equals the earlier."""
        if self.best is None:
            return []
        for step in set(steps) - self._scores.keys():
            try:
                score = self._body(step)["meta"].get(self.best[0])
            except _DamagedError:
                score = None
            self._scores[step] = score if isinstance(score, int | float) else None
        scores = {step: score for step in steps if (score := self._scores[step]) is not None}
        sign = {"max": -1, "min": 1}[self.best[1]]
        return sorted(scores, key=lambda step: sign * scores[step])

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises the error of a save that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        if not self._alone:
            self._manager.wait_until_finished()
            self._retire()

    def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that are on disk, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The best step on disk; None without `best`, or where no step has that metric."""
        self.wait()
        return self._best(self.steps())

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
        """The newest good state, its `meta` and its step, or None where nothing was saved.

        `like` gives the structure: arrays or `jax.ShapeDtypeStruct`s, whose shardings the leaves
        take. A damaged step is skipped with a warning and, once an older one proved good, deleted,
        so that it can be saved again. ValueError if no step is good, if `step` is not there or is
        damaged, or if a leaf is missing, unknown or of another shape or type.
        """
        self.wait()
        steps = self.steps()
        if step is None:
            return self._first_good(like, steps[::-1], "the one before it")
        if step not in steps:
            raise ValueError(f"{self.folder} has no checkpoint of step {step}, only of {steps}")
        try:
            return *self._read(step, like), step
        except _DamagedError as error:
            raise ValueError(f"checkpoint {self.folder / str(step)} is damaged: {error}") from error

    def restore_best(self, like: Any) -> tuple[Any, dict[str, Any], int] | None:
        """The best good state (see `best`), its `meta` and its step; None where none has a score.

        A damaged step gives way to the next best, as `restore` has it.
        """
        self.wait()
        return self._first_good(like, self._ranked(self.steps()), "the next best")

    def _first_good(
        self, like: Any, candidates: list[int], instead: str
    ) -> tuple[Any, dict[str, Any], int] | None:
        damaged = []
        for candidate in candidates:
            try:
                state, meta = self._read(candidate, like)
            except _DamagedError as error:
                problem = f"checkpoint {self.folder / str(candidate)} is damaged: {error}"
                if candidate == candidates[-1]:
                    advice = f"delete {self.folder} to start over"
                    raise ValueError(f"{problem}; {advice}") from error
                warnings.warn(f"{problem}; using {instead}", stacklevel=3)
                damaged.append(candidate)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            return state, meta, candidate
        return None

    def _items(self, step: int, **args: ocp.args.CheckpointArgs) -> Mapping[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _body(self, step: int) -> dict[str, Any]:
        try:
            saved = self._items(step, meta=ocp.args.JsonRestore())["meta"]
            body, sha256 = saved["body"], saved["sha256"]
            intact = sha256 == records.config_digest(body) and body["step"] == step
        except Exception as error:  # whatever a damaged file makes of Orbax
            raise _DamagedError(f"its meta cannot be read ({first_line(error)})") from error
        if not intact:
            raise _DamagedError("its meta has other bits than were saved")
        return body

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        body = self._body(step)
        wanted = _flatten(like)
        _compare(body["leaves"], wanted, f"checkpoint {self.folder / str(step)}")
        templates = {name: _template(leaf) for name, leaf in wanted.items()}
        saved = {name: template for name, template in templates.items() if template.size}
        try:
            arrays = templates | self._items(step, state=ocp.args.StandardRestore(saved))["state"]
        except Exception as error:
            raise _DamagedError(first_line(error)) from error
        for name, (_, sha256) in body["leaves"].items():
            if digest(arrays[name]) != sha256:
                raise _DamagedError(f"leaf {name} has other bits than were saved")
        leaves = [_place(arrays[name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), body["meta"]


class _DamagedError(Exception):
    """What is wrong with a step; never leaves this module."""


def _flatten(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, in the order of `jax.tree.leaves`."""
    leaves: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"two leaves are called {name}: checkpoints need names of their own")
        if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "dtype"):
            raise ValueError(
                f"leaf {name} is a {type(leaf).__name__}: expected an array or a number"
            )
        leaves[name] = leaf
    if not leaves:
        raise ValueError("a state without leaves cannot be saved or restored")
    return leaves


def _copy(leaf: Any) -> Any:
    """A copy that no donation can reach: on the device, so that it waits for no computation."""
    if isinstance(leaf, jax.Array):
        return jnp.copy(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return np.array(leaf)


def _compare(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    for name, leaf in wanted.items():
        if name not in saved:
            raise ValueError(
                f"{where} has no leaf {name}, which this state has as {type_name(leaf)}"
            )
        if saved[name][0] != type_name(leaf):
            raise ValueError(
                f"{where} has leaf {name} as {saved[name][0]}, this state {type_name(leaf)}"
            )
    for name in saved:
        if name not in wanted:
            raise ValueError(f"{where} has a leaf {name}, {saved[name][0]}, which this state lacks")


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Where a restored leaf belongs; None leaves it to JAX, as for an array that nobody placed."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _template(leaf: Any) -> Any:
    """What Orbax restores a leaf as: an array on a sharding, or one in host memory."""
    sharding = _sharding(leaf)
    if sharding is not None and not is_key(leaf) and math.prod(leaf.shape):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    data = data if hasattr(data, "dtype") else np.asarray(data)
    return np.zeros(data.shape, data.dtype)


def _place(array: Any, leaf: Any) -> Any:
    """A restored array as the kind of thing that `leaf` is."""
    if isinstance(array, jax.Array) or isinstance(leaf, np.ndarray):
        return array
    sharding = _sharding(leaf)
    if is_key(leaf):
        wrap = partial(
            jax.random.wrap_key_data, impl=jax.random.key_impl(jnp.empty((), leaf.dtype))
        )
        return wrap(array) if sharding is None else jax.jit(wrap, out_shardings=sharding)(array)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jnp.array(array) if sharding is None else jax.device_put(array, sharding)
    return type(leaf)(array.item())
