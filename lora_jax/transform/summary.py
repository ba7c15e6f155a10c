"""What is trained, weight by weight."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from lora_jax.table import Table
from lora_jax.transform.placement import Frozen, Trainable


@dataclasses.dataclass(frozen=True)
class Summary:
    """Rows of `path, use, shape, variant, rank, trained parameters, share`, and totals."""

    rows: tuple[tuple[str, str, str, str, str, int], ...]
    trained: int
    total: int
    """Parameters of the model, without the adapters'."""
    left_out: tuple[tuple[str, int], ...] = ()
    """What a group such as "all-linear" passes over, and how many of each."""

    @property
    def share(self) -> float:
        """Trained parameters in percent of the model's."""
        return 100 * self.trained / self.total

    def __str__(self) -> str:
        heads = ("path", "use", "shape", "variant", "rank", "trained", "share")
        whole = max(self.trained, 1)
        body = [(*row[:5], f"{row[5]:,}", f"{100 * row[5] / whole:.1f}%") for row in self.rows]
        last = f"{self.trained:,} of {self.total:,} parameters are trained ({self.share:.3f}%)"
        if self.left_out:
            last += f"\nleft out: {', '.join(f'{kind} ({n})' for kind, n in self.left_out)}"
        return f"{Table(heads, body).to_text()}\n{last}"

    __repr__ = __str__


def summary(trainable: Trainable, frozen: Frozen) -> Summary:
    """A table of what is trained; layers that differ or are left out are counted exactly.

    `share` is a row's percentage of all trained parameters.
    """
    rows = []
    for each in frozen.spec.adapted:
        use = each.use
        layers = each.layers if isinstance(each.layers, tuple) else (each.layers,)
        kinds = dict.fromkeys(type(v).__name__ for v in layers if v is not None)
        asked = (str(getattr(v, "rank", "")) if v else "-" for v in layers)
        ranks = each.ranks or dict.fromkeys(asked)
        kind = ", ".join(dict.fromkeys(str(u) for u in use.uses))
        rows.append(
            (
                use.path,
                kind,
                _shape(use.shape),
                "/".join(kinds),
                "/".join(map(str, ranks)),
                each.count,
            )
        )
    groups = list(frozen.spec.groups().items())
    for number, shared in trainable.get("shared", {}).items():
        variant, paths = groups[int(number)]
        kind = type(variant).__name__
        for name, leaf in shared.items():
            size = math.prod(leaf.shape)
            rows.append((name, f"shared by {len(paths)}", _shape(leaf.shape), kind, "", size))
    for path, leaf in trainable["params"].items():
        rows.append((path, "trained in full", _shape(leaf.shape), "", "", math.prod(leaf.shape)))
    order = {path: number for number, path in enumerate(frozen.spec.paths)}
    rows.sort(key=lambda row: order.get(row[0], len(order)))
    quantised = {each.use.path: each.use for each in frozen.spec.placements if each.storage}
    leaves: list[Any] = [quantised.get(path, leaf) for path, leaf in frozen.base.items()]
    leaves += trainable["params"].values()
    weights = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    total = sum(math.prod(leaf.shape) for leaf in weights)
    left_out = tuple((kind, len(paths)) for kind, paths in frozen.spec.left_out)
    return Summary(tuple(rows), sum(row[5] for row in rows), total, left_out)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
