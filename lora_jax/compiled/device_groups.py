"""Which devices a collective joins, read from every form that compiled programs use."""

import math
import re

import numpy as np

from lora_jax.compiled.hlo import Instruction, split

Groups = tuple[tuple[int, ...], ...]


def groups(it: Instruction, devices: int) -> Groups:
    """The groups of devices that exchange among themselves, of `devices` in all."""
    if pairs := it.attributes.get("source_target_pairs"):
        return _connected(_lists(pairs))
    text = it.attributes.get("replica_groups", "{}")
    if text.startswith("mesh["):
        return _mesh_groups(text, it.attributes.get("device_ids", ""))
    if text.startswith("["):
        shape, _, order = text.partition("<=")
        return _rows(_iota(order).reshape(_numbers(shape)))
    return _lists(text) or (tuple(range(devices)),)


def _lists(text: str) -> Groups:
    """Read {{0,1},{2,3}}."""
    return tuple(_numbers(part) for part in split(text[1:-1]))


def _iota(text: str) -> np.ndarray:
    """Read [2,4]T(1,0): numbers counted up in that shape, then transposed."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _mesh_groups(mesh: str, device_ids: str) -> Groups:
    """Read mesh['a'=2,'b'=4] {'a'}, or mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}.

    A part of an axis may be named: 'b':(2)2 is the part of size 2 after a first part of size 2.
    """
    axes, _, wanted = mesh.removeprefix("mesh[").partition("]")
    sizes = {name: int(size) for name, _, size in (a.rpartition("=") for a in split(axes))}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids:
        order, _, wanted = device_ids.partition(") {")
        order = order.removeprefix("(")
        ids = _iota(order).ravel() if order.startswith("[") else np.array(_numbers(order))
    shape, members = [], []
    parts = [each.partition(":") for each in split(wanted.strip(" {}"))]
    for name, size in sizes.items():
        cuts = {0: (1, size)} if (name, "", "") in parts else {}
        for part, _, cut in parts:
            if part == name and cut:
                before, own = _numbers(cut)
                cuts[before] = (before, own)
        done = 1
        for before, own in sorted(cuts.values()):
            shape += [before // done, own]
            members.append(len(shape) - 1)
            done = before * own
        shape.append(size // done)
    others = [axis for axis in range(len(shape)) if axis not in members]
    size = math.prod(shape[axis] for axis in members)
    return _rows(ids.reshape(shape).transpose(others + members).reshape(-1, size))


def _connected(pairs: Groups) -> Groups:
    """The devices that a permutation connects."""
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)]
        groups.append(set(pair).union(*touched))
    return tuple(tuple(sorted(group)) for group in sorted(groups, key=min))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(each) for each in row) for row in ids)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
