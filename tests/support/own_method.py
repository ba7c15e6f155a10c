"""A user's methods, in a package of its own beside the project."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "own_package.wide"
CODE = '''
import dataclasses
from typing import Any, Optional

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class Wide(LowRank):
    """LoRA of `times` the rank; its other fields have types as a user may write them."""

    times: int = 1
    factor: float = 1.0
    exact: bool = True
    kind: str = "plain"
    bands: tuple[int, ...] = (1,)
    pair: tuple[int, str] = (1, "a")
    limit: Optional[float] = None
    mixed: int | float | None = None
    other: Any = None

    def init(self, key, base):
        return LowRank(rank=self.times * self.rank, alpha=self.alpha).init(key, base)

    def count(self, shape):
        return self.times * super().count(shape)
'''

RANKLESS = "own_package.columns"
RANKLESS_CODE = '''
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from lora_jax.variant import Factors, Suggested, Variant, wide


@dataclasses.dataclass(frozen=True)
class Columns(Variant):
    """One factor for each output."""

    title: ClassVar[str] = "my columns"
    suggested: ClassVar[Suggested] = Suggested(
        0.05, 0.01, (0.01, 0.02, 0.04), {"start": 1.5}, ("query/kernel",)
    )
    start: float = 1.0

    def init(self, key, base):
        return Factors({"v": jnp.full(base.shape[1], self.start, wide(base.dtype))}, {})

    def weight(self, base, factors):
        return base.dense() * factors.trainable["v"][None, :]

    def count(self, shape):
        return shape[1]
'''


def write(folder: Path) -> None:
    """Write the package into a folder, which is to be on the path of modules."""
    (folder / "own_package").mkdir()
    (folder / "own_package" / "wide.py").write_text(CODE, encoding="utf-8")
    (folder / "own_package" / "columns.py").write_text(RANKLESS_CODE, encoding="utf-8")


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """Write the package into a folder, and have it on the path of modules."""
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
