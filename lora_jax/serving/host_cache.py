"""Prepared adapters in host memory, up to a number of bytes."""

import collections
import dataclasses

from lora_jax.serving.entries import Prepared


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """An adapter as one load found it."""

    name: str
    digest: str
    prepared: Prepared
    turn: int
    """When the load began, in the order of all loads."""


class HostCache:
    """The most recently used versions, one of each name; not safe for several threads at once.

    Args:
      most: the most bytes of all together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._versions: collections.OrderedDict[str, Version] = collections.OrderedDict()
        self.nbytes = 0

    def get(self, name: str) -> Version | None:
        if (found := self._versions.get(name)) is not None:
            self._versions.move_to_end(name)
        return found

    def put(self, version: Version) -> None:
        """Keep a version in the place of another one, unless it alone is too large."""
        self.drop(version.name)
        if version.prepared.nbytes > self._most:
            return
        self._versions[version.name] = version
        self.nbytes += version.prepared.nbytes
        while self.nbytes > self._most:
            self.drop(next(iter(self._versions)))

    def drop(self, name: str) -> None:
        if (found := self._versions.pop(name, None)) is not None:
            self.nbytes -= found.prepared.nbytes
