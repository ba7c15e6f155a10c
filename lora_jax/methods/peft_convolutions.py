"""Adapters of convolutions in PEFT's files: LoRA's factors are kernels there.

Here they are of the kernel's matrix, whose inputs are the input channels and all places, in the
order in which the model stores them. PEFT's LoRA is a convolution to as many channels as the rank
and one of 1 x 1 to the outputs; its LoHa is of a matrix, too, in torch's order.
"""

from typing import Any

import numpy as np

from lora_jax.base import Kernel
from lora_jax.peft_format import Peft

Shape = tuple[int, ...]
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
LOHA = ("hada_w1_b", "hada_w2_b")
"""Of its tensors, those with the inputs as columns."""


def kernel_to_torch(kernel: Kernel, array: Any) -> Any:
    """One kernel as torch's layer has it, from the model's."""
    stored = sorted(kernel.axes)
    return array.transpose([stored.index(axis) for axis in kernel.axes])


def kernel_from_torch(kernel: Kernel, tensor: Any) -> Any:
    """One kernel as the model has it, from that of torch's layer."""
    return tensor.transpose([kernel.axes.index(axis) for axis in sorted(kernel.axes)])


def to_torch(kernel: Kernel, peft: Peft) -> Peft:
    """PEFT's adapter of a convolution, from that of its kernel's matrix.

    Raises:
      ValueError: PEFT has no such adapter of this convolution.
    """
    _check(kernel, peft)
    columns, shapes = _columns(kernel), _shapes(kernel, peft)
    found = {n: x[:, columns] if n in (A, *LOHA) else x for n, x in peft.tensors.items()}
    return peft._replace(tensors={n: x.reshape(shapes.get(n, x.shape)) for n, x in found.items()})


def from_torch(kernel: Kernel, peft: Peft) -> Peft:
    """The adapter of a kernel's matrix, from PEFT's of its convolution; works on shapes, too.

    Raises:
      ValueError: PEFT has no such adapter of this convolution, or a tensor has another shape.
    """
    _check(kernel, peft)
    columns, found = np.argsort(_columns(kernel)), dict(peft.tensors)
    for name, shape in _shapes(kernel, peft).items():
        if name in found:
            if found[name].shape != shape:
                raise ValueError(f"{name} of this convolution has the shape {shape}")
            found[name] = found[name].reshape(-1 if name == MAGNITUDE else (shape[0], -1))
    found = {n: x[:, columns] if n in (A, *LOHA) else x for n, x in found.items()}
    return peft._replace(tensors=found)


def _check(kernel: Kernel, peft: Peft) -> None:
    kind, (_, _, *places) = peft.settings["peft_type"], kernel.shape
    if kind == "LORA" and kernel.groups > 1:
        raise ValueError(f"PEFT's LoRA of {kernel.groups} groups mixes all of their channels")
    if kind not in ("LORA", "LOHA") or (kind == "LOHA" and len(places) > 2):
        raise ValueError(f"PEFT's {kind} of a {len(places)}D convolution is not that of its matrix")


def _columns(kernel: Kernel) -> np.ndarray:
    """For each input of torch's matrix, its number in the model's."""
    inputs = sorted(kernel.axes[1:])
    numbers = np.arange(np.prod(kernel.shape[1:]))
    sizes = [kernel.shape[kernel.axes.index(axis)] for axis in inputs]
    return numbers.reshape(sizes).transpose([inputs.index(a) for a in kernel.axes[1:]]).ravel()


def _shapes(kernel: Kernel, peft: Peft) -> dict[str, Shape]:
    """The shapes of PEFT's tensors that are not those of a matrix's adapter, or have its inputs."""
    out, *inputs = kernel.shape
    ones = (1,) * (len(inputs) - 1)
    if peft.settings["peft_type"] == "LOHA":
        return {name: (len(peft.tensors[name]), int(np.prod(inputs))) for name in LOHA}
    rank = len(peft.tensors[A])
    shapes = {A: (rank, *inputs), B: (out, rank, *ones)}
    return shapes | ({MAGNITUDE: (1, out, *ones)} if MAGNITUDE in peft.tensors else {})
