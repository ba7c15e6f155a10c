"""Flax NNX models as functions of their parameters."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(model: "nnx.Module") -> tuple[Callable[..., Any], "nnx.State"]:
    """An NNX model as `(forward, params)`, with `forward(params, *args, **kwargs) = model(...)`.

    Changes that a call makes to the model (dropout counters, batch statistics) are not kept.
    """
    from flax import nnx  # not above: who has other models need not wait for it

    graph, params = nnx.split(model)

    def forward(params: Any, /, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, params)(*args, **kwargs)

    return forward, params
