"""The adapters of a model one by one: each layer of a stack, with its torch name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lora_jax.base import Kernel
from lora_jax.files.arrays import to_host
from lora_jax.interchange.names import Names, Row
from lora_jax.messages import nearest
from lora_jax.methods.peft_convolutions import kernel_to_torch
from lora_jax.methods.peft_joined import joined
from lora_jax.models.parts.family import Place
from lora_jax.peft_format import Layouts, Peft
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.placement import (
    Frozen,
    Placement,
    Trainable,
    base_of,
    warn_of_doubts,
)
from lora_jax.variant import Base, Factors, Variant


class Matrix(NamedTuple):
    """One matrix with an adapter; arrays of the base stay where they are, factors are NumPy's."""

    path: str
    layer: int
    place: Place
    lookup: bool
    """Whether it is an embedding, whose rows are looked up."""
    conv1d: bool
    """Whether torch stores it as (in, out), as GPT-2's Conv1D does."""
    variant: Variant
    base: Base
    factors: Factors
    tied: bool
    """Whether it is a table that is also the head."""
    kernel: Kernel | None = None
    """Of a convolution."""

    @property
    def module(self) -> str:
        return self.place.name.removesuffix(".weight")


def depth(placement: Placement) -> int:
    """How many matrices a weight has.

    Raises:
      ValueError: it is stacked along several axes.
    """
    if len(stack := placement.use.stack_shape) > 1:
        raise ValueError(f"'{placement.use.path}' is stacked along {len(stack)} axes, not one")
    return stack[0] if stack else 1


def lookup(placement: Placement) -> bool:
    return any(use.kind == "lookup" for use in placement.use.uses)


def row(placement: Placement, tree: Any, layer: int) -> Any:
    """One layer of every leaf of factors or a base, if the weight is stacked."""
    return jax.tree.map(lambda leaf: leaf[layer], tree) if placement.use.stack else tree


def variant_at(placement: Placement, layer: int) -> Variant | None:
    """The variant of one layer; None for a layer without an adapter."""
    layers = placement.layers
    return layers[layer] if isinstance(layers, tuple) else layers


def by_module(stored: Iterable[tuple[Matrix, Peft]]) -> dict[str, Peft]:
    """What modules of torch have of the adapter; the parts of a joined one are put side by side.

    Raises:
      ValueError: two weights are one module, or there is none.
    """
    found: dict[str, Peft] = {}
    parts: dict[str, dict[int, tuple[Peft, Layouts]]] = {}
    for each, peft in stored:
        if each.place.part is not None:
            layouts = each.variant.peft_layouts
            parts.setdefault(each.module, {})[each.place.part] = peft, layouts
        elif each.module in found:
            raise ValueError(f"'{each.path}' and another weight are both '{each.module}' in torch")
        else:
            found[each.module] = peft
    for module, several in parts.items():
        (_, layouts), *_ = several.values()
        found[module] = joined({n: several[n][0] for n in sorted(several)}, layouts)
    if not found:
        raise ValueError("there is no adapter to write: merge the weights, and write the model")
    return found


def matrices(
    trainable: Trainable, frozen: Frozen, names: Names, kernels: bool = False
) -> Iterator[Matrix]:
    """Every matrix with an adapter, weight by weight.

    Args:
      kernels: whether kernels of convolutions are among them.

    Raises:
      ValueError: a weight has no torch name, or is a kernel that torch's layer or the format lacks.
    """
    warn_of_doubts(trainable, frozen)
    shared = frozen.shared_by(trainable)
    for placement in frozen.spec.adapted:
        path = placement.use.path
        if placement.use.is_convolution and not kernels:
            raise ValueError(
                f"'{path}' is the kernel of a convolution, and only PEFT's files hold its adapter: "
                "use --as=peft (lj.save_peft), or merge the weights instead"
            )
        factors = Factors(trainable["adapters"][path], frozen.constants[path])
        factors = jax.tree.map(to_host, factors)
        base = base_of(placement, frozen.base[path])
        for layer in range(depth(placement)):
            if (variant := variant_at(placement, layer)) is None:
                continue
            if (place := names.place(path, layer)) is None:
                known = [each for each in frozen.spec.paths if names.place(each, 0) is not None]
                raise ValueError(
                    f"'{path}' has no torch name; nearest that has: {nearest(path, known)}"
                )
            one = with_shared(row(placement, factors, layer), shared[placement.variant])
            at = row(placement, base, layer)
            kind = lookup(placement)
            use, kernel = placement.use, placement.use.kernel
            if use.is_convolution and kernel is None:
                raise ValueError(
                    f"'{path}' is the kernel of a convolution as PEFT has none, such as a "
                    "transposed one: merge the weights instead"
                )
            inputs_first = min(use.inputs, default=0) < min(use.outputs, default=0)
            conv1d = not kind and kernel is None and inputs_first != place.transposed
            yield Matrix(path, layer, place, kind, conv1d, variant, at, one, use.is_tied, kernel)


def all_params(trainable: Trainable, frozen: Frozen) -> dict[str, Any]:
    """All parameters by path, trained and frozen, in the order of the user's tree."""
    arrays = {**frozen.base, **trainable["params"]}
    return {path: arrays[path] for path in frozen.spec.paths if path in arrays}


def kernels_of(frozen: Frozen) -> dict[str, Kernel]:
    """Of parameters that train in full and of adapted weights, by path."""
    uses = [*frozen.spec.full, *(each.use for each in frozen.spec.adapted)]
    return {use.path: kernel for use in uses if (kernel := use.kernel)}


def trained_rows(trainable: Trainable, every: list[Row]) -> list[Row]:
    """The layers of parameters that train in full; ValueError for one without a torch name."""
    trained = [row for row in every if row.path in trainable["params"]]
    if missing := trainable["params"].keys() - {row.path for row in trained}:
        raise ValueError(f"'{min(missing)}' trains in full, and has no torch name")
    return trained


def torch_tensor(
    parts: list[Row], params: Mapping[str, Any], names: Names, kernels: Mapping[str, Kernel]
) -> np.ndarray:
    """A tensor as torch has it, from the parameters that are its parts, side by side.

    Raises:
      ValueError: a part is quantised, or it is not known how torch has its axes.
    """
    found = []
    for part in sorted(parts, key=lambda each: each.place.part or 0):
        if isinstance(value := params[part.path], dict):
            raise ValueError(f"'{part.path}' is quantised, and other parts of its module train")
        array = to_host(value)[part.layer] if names.stacked(part.path) else to_host(value)
        kernel = kernels.get(part.path)
        if part.place.transposed and kernel is None and array.ndim > 3:
            raise ValueError(
                f"'{part.path}' has {array.ndim} axes, and what they are in torch is not known: "
                "name the tensor itself ('conv.weight') if it is stored as there"
            )
        if part.place.transposed:
            array = array.T if kernel is None else kernel_to_torch(kernel, array)
        found.append(array)
    return np.concatenate(found, 0 if any(each.place.transposed for each in parts) else -1)
