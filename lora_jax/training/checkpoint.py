"""Save training states with Orbax, asynchronously and with our own checksums.

Only a state's leaves are saved, as a flat {path: array}. So named tuples, empty optimiser states
and masked nodes need nothing special, and a mismatch can name a path. Orbax does not notice flipped
bits, and does not skip a step that it cannot read. Here every leaf has a `checksum`, and the step
before a damaged one is used instead. A state that several processes or devices have saved can be
restored by any other number of them.
"""

import concurrent.futures
import contextlib
import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lora_jax.files import full_disk
from lora_jax.files.arrays import DIGITS, checksum, hexadecimal, holds, type_name
from lora_jax.files.json_text import config_digest, plain
from lora_jax.messages import first_line
from lora_jax.training.state_leaves import (
    bare,
    copy,
    leaves_by_path,
    require_same_leaves,
    restored_like,
    template,
)

_OVERHEAD, _LEAF = 2**16, 2**10
"""Bytes that a step takes besides its arrays: a fixed number, and a number for each leaf."""


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The newest `keep` checkpoints of a run.

    Only one run at a time may use a folder. Use it as a context
    manager or call `close`: only then is the last save sure to be on disk. In a run of several
    processes, each makes one for a folder that all can see, and all call the same methods with the
    same arguments.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep = Path(folder).absolute(), keep
        # A single process writes from its own thread, which blocks training less than Orbax's
        # asynchronous saving does. Several must enter Orbax's barriers in the same order.
        self._alone = jax.process_count() == 1
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, enable_async_checkpointing=not self._alone
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future | None = None

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any] | None = None, *, owned: bool = False
    ) -> bool:
        """Start to save a state (any pytree) and JSON values; the state may be donated at once.

        First waits for the save before, and raises its error if it failed (a FullDiskError if the
        disk was full). Returns False and saves nothing if the step is already there. A state that
        the caller made for this and uses nowhere else (`owned`) is not copied.
        """
        self.wait()
        if step in self.steps():
            return False
        leaves = leaves_by_path(state)
        types = {name: type_name(leaf) for name, leaf in leaves.items()}
        arrays = {name: copy(leaf, self._alone, owned) for name, leaf in leaves.items()}
        # Start the sums here; the writer waits for them. One thread must start all programs of
        # several devices: otherwise devices may take two in different orders and wait for ever.
        sums = {name: checksum(array) for name, array in arrays.items()}
        values = plain(meta or {}, "meta")
        if self._alone:
            self._pending = self._thread.submit(self._write, step, types, arrays, sums, values)
        else:
            self._write(step, types, arrays, sums, values)
        return True

    def _write(self, step: int, types: dict, arrays: dict, sums: dict, meta: dict) -> None:
        leaves = {name: [types[name], hexadecimal(each)] for name, each in sums.items()}
        body = {"step": step, "meta": meta, "leaves": leaves}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({n: a for n, a in arrays.items() if a.size}),
            meta=ocp.args.JsonSave({"body": body, "sha256": config_digest(body)}),
        )
        with full_disk.naming(self.folder / str(step)), full_disk.quiet():
            if self._alone:  # otherwise all processes would have to agree
                size = sum(array.nbytes for array in arrays.values()) + _LEAF * len(arrays)
                full_disk.require(self.folder, size + _OVERHEAD)
            self._manager.save(step, args=items, force=True)
        if self._alone:
            self._retire()

    def _retire(self) -> None:
        for step in self.steps()[: -self.keep]:
            self._manager.delete(step)

    def wait(self) -> None:
        """Wait until all saves are on disk; raise the error of a save that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        if not self._alone:
            with full_disk.naming(self.folder), full_disk.quiet():
                self._manager.wait_until_finished()
            self._retire()

    def close(self) -> None:
        """Wait for all saves, and end the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that are on disk, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
        """The newest good state, its `meta` and its step, or None if nothing was saved.

        `like` gives the structure: arrays or `jax.ShapeDtypeStruct`s, whose shardings the restored
        leaves take. A damaged step is skipped with a warning. Once an older step proves good, the
        damaged one is deleted, so that it can be saved again. Raises a ValueError if no step is
        good, if `step` is not there or is damaged, or if a leaf is missing, unknown or of another
        shape or type.
        """
        self.wait()
        steps = self.steps()
        if step is None:
            return self._newest_good(like, steps[::-1])
        if step not in steps:
            raise ValueError(f"{self.folder} has no checkpoint of step {step}, only of {steps}")
        try:
            return *self._read(step, like), step
        except _DamagedError as error:
            raise ValueError(f"checkpoint {self.folder / str(step)} is damaged: {error}") from error

    def _newest_good(
        self, like: Any, candidates: list[int]
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
                warnings.warn(f"{problem}; using the one before it", stacklevel=3)
                damaged.append(candidate)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            return state, meta, candidate
        return None

    def _body(self, step: int) -> dict[str, Any]:
        body, problem, cause = {}, "", None
        try:
            saved = self._load(ocp.JsonCheckpointHandler(), step, "meta", ocp.args.JsonRestore())
            body, sha256 = saved["body"], saved["sha256"]
            if sha256 != config_digest(body) or body["step"] != step:
                problem = "its meta differs from what was saved"
        except Exception as error:  # Orbax may raise anything on a damaged file
            problem, cause = f"its meta cannot be read ({first_line(error)})", error
        self._agree(step, problem, cause)
        return body

    def _load(self, handler: Any, step: int, item: str, args: Any) -> Any:
        """Load without Orbax's manager: a process that meets damage does not reach its barriers."""
        return handler.restore(self._manager.directory / str(step) / item, args=args)

    def _agree(self, step: int, problem: str, cause: Exception | None = None) -> None:
        """Raise an error if this process, or another one, has found a problem.

        It is a _DamagedError, or an OSError if the cause is one of the machine: then the files may
        be good, and stay.
        """
        kind = int(bool(problem)) + _is_of_the_machine(cause)
        if not self._alone:
            found = multihost_utils.process_allgather(np.array(kind))
            if found.max() > kind:
                kind, problem = int(found.max()), f"found by process {found.argmax()}"
        if kind > 1:
            raise OSError(f"checkpoint {self.folder / str(step)} cannot be read now: {problem}")
        if problem:
            raise _DamagedError(problem)

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        body, where = self._body(step), f"checkpoint {self.folder / str(step)}"
        wanted = leaves_by_path(like)
        try:
            require_same_leaves(body["leaves"], wanted, where)
        except ValueError as error:
            raise ValueError(
                f"{error}: go on with the settings and the version that saved it, or delete "
                f"{self.folder} to start over"
            ) from None
        digests = {name: saved[1] for name, saved in body["leaves"].items()}
        if any(len(each) != DIGITS for each in digests.values()):
            raise ValueError(
                f"{where} has digests of another kind, of an earlier version: go on with that "
                f"version, or delete {self.folder} to start over"
            )
        templates = {name: template(leaf, self._alone) for name, leaf in wanted.items()}
        saved = {name: each for name, each in templates.items() if each.size}
        arrays, problem, cause = {}, "", None
        try:
            args = ocp.args.StandardRestore(saved)
            arrays = self._load(ocp.StandardCheckpointHandler(), step, "state", args)
        except Exception as error:
            problem, cause = first_line(error), error
        self._agree(step, problem, cause)
        restored = {
            name: restored_like((templates | arrays)[name], leaf) for name, leaf in wanted.items()
        }
        sums = {name: checksum(bare(leaf)) for name, leaf in restored.items()}
        bad = [name for name, each in sums.items() if not holds(each, digests[name])]
        self._agree(step, f"leaf {bad[0]} differs from what was saved" if bad else "")
        return jax.tree.unflatten(jax.tree.structure(like), restored.values()), body["meta"]


_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    *(errno.ENOMEM, errno.ETIMEDOUT, errno.ENETDOWN, errno.EHOSTDOWN, errno.ECONNRESET),
)
"""Errors of reading that may be over the next time."""
_TEXTS = (*map(os.strerror, _OF_THE_MACHINE), "RESOURCE_EXHAUSTED")
"""What libraries that are not written in Python quote in their errors."""


def _is_of_the_machine(error: BaseException | None) -> bool:
    """Whether an error of reading does not say that the files are damaged."""
    while error is not None:
        known = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
        if known or isinstance(error, MemoryError) or any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


class _DamagedError(Exception):
    """Says how a step is damaged; never leaves this module."""
