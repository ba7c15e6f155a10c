"""One adapter in one file: what was trained, and the constants that it was trained with.

The same of what an adapter began with: `save_seen` and `load_seen`.
"""

import dataclasses
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.adapters.base_digest import (
    IMPLEMENTATIONS,
    KEY,
    base_digests,
    digest,
    made_again,
    require_base,
)
from lora_jax.base import Seen, SeenGradient, SeenInputs
from lora_jax.files.arrays import is_key, to_host
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.partition import flatten
from lora_jax.transform.placement import (
    Frozen,
    Trainable,
    group_of,
    require_order,
    shared_factors,
    warn_of_doubts,
    with_shared_arrays,
)
from lora_jax.variant import Factors

BASE = "lora_jax.base"
"""The name of the base's digests among a file's JSON values."""
REMADE = "lora_jax.remade"
"""The name of the digests of what a file leaves out, since it can be made again."""
KEPT = ("constants", "shared")
"""The parts of a file's tree beside what trains."""


def save_adapter(
    path: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    meta: Mapping[str, Any] | None = None,
    *,
    whole: bool = False,
) -> Path:
    """Write trainables and the adapters' constants (see `save_tree`); the base is not in the file.

    The constants are saved because they may be random (LoRA-FA) or depend on a decomposition
    (PiSSA), which another machine or version may not reproduce. Those that the variant says can be
    made again (`Variant.remade`) are left out, if they are the same bit by bit when they are made
    again here; digests of them are saved. Digests of the base (`base_digests`) are saved so that
    another base is recognised. Warns if training seems to have left something out (`update`).

    Args:
      whole: whether to save all constants, for another machine or version.
    """
    require_order(trainable, frozen)
    warn_of_doubts(trainable, frozen)
    tree, left_out = _tree(trainable, frozen), {}
    for name, array in {} if whole else made_again(frozen).items():
        part, where, last = _parts(name)
        found = digest(array)
        if digest(tree[part][where][last]) == found:
            left_out[name] = found
            kept = {n: x for n, x in tree[part][where].items() if n != last}
            tree[part] = {**tree[part], where: kept}
    values = {
        **(meta or {}),
        BASE: base_digests(frozen),
        **({REMADE: left_out} if left_out else {}),
    }
    return save_tree(path, tree, values)


def load_adapter(
    path: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    *,
    any_base: bool = False,
    digests: Mapping[str, str] | None = None,
) -> tuple[Trainable, Frozen, dict[str, Any]]:
    """Load the trainables of `save_adapter`, a Frozen with its constants, and the JSON values.

    Args:
      trainable: what `init` gave; only its structure and shapes matter.
      frozen: what `init` gave, which holds the base.
      any_base: whether to accept another base than the adapter was trained on; constants that say
        something of the base alone (`Variant.of_base`) are then those of `frozen`. Files of earlier
        versions do not say which base that was, and load onto any.
      digests: what `base_digests(frozen)` gave; for many files, the base is read once for all.

    Raises:
      ValueError: the file's adapters, or their shapes, are not those that `frozen` describes.
      OtherBaseError: it was trained on another base (a ValueError, too).
    """
    tree, meta = _load(path)
    _check_keys(path, tree, frozen)
    here = {} if any_base else base_digests(frozen) if digests is None else digests
    tree = _completed(path, tree, meta, trainable, frozen, here)
    tree = {**tree, "shared": _keyed(tree["shared"], frozen)}
    wanted, _ = flatten(_tree(trainable, frozen))
    found, _ = flatten(tree)
    for name in [*wanted, *found]:
        if name.rpartition("/")[2] == KEY and name in found and name in wanted:
            continue  # `_check_keys` has checked it
        _check_shape(path, f"'{name}'", found.get(name), wanted.get(name))
        _check_kind(path, name, found[name], wanted[name])
    _check_base(path, meta, tree, trainable, here)
    shared = [
        shared_factors(variant, tree["shared"].get(str(number), {}))
        for number, variant in enumerate(frozen.spec.groups())
    ]
    constants = tree["constants"]
    if any_base:
        of_base = {each.use.path: group_of(each).of_base for each in frozen.spec.adapted}
        constants = {
            where: {**read, **{name: frozen.constants[where][name] for name in of_base[where]}}
            for where, read in constants.items()
        }
    frozen = dataclasses.replace(frozen, constants=constants)
    own = {"adapters": tree["adapters"], "params": tree["params"]}
    values = {name: each for name, each in meta.items() if name not in (BASE, REMADE)}
    return *with_shared_arrays(own, frozen, shared), values


def start_from(
    path: str | os.PathLike, trainable: Trainable, frozen: Frozen, *, any_base: bool = False
) -> tuple[Trainable, Frozen]:
    """Start a run from the adapter that another run has saved (for example on MNLI).

    The saved adapters, with what they share and train, replace those of `init`, and so do the
    matrices among their constants (random ones, such as VeRA's projections) and what can be made
    again. Numbers, such as the keep probability, stay as in `frozen`.
    A saved parameter that trains in full is used if its path and shape agree. A head for other
    classes, whose shape differs only in the last axis, starts anew, with a warning. A saved
    parameter that this run does not train gives a warning, too, and the base's value is used.

    Args:
      any_base: as in `load_adapter`.

    Raises:
      ValueError: the file's adapters, their shapes, a scale or the names of fixed matrices differ
        (those of a start that is subtracted: PiSSA's run begins none of LoRA's); or a parameter
        that trains in full differs in more than its last axis.
      OtherBaseError: it was trained on another base (a ValueError, too).
    """
    tree, meta = _load(path)
    _check_keys(path, tree, frozen)
    here = {} if any_base else base_digests(frozen)
    tree = _completed(path, tree, meta, trainable, frozen, here)
    wanted, found = (flatten(each["adapters"])[0] for each in (trainable, tree))
    for name in [*wanted, *found]:
        _check_shape(path, f"the adapter '{name}'", found.get(name), wanted.get(name))
    _check_base(path, meta, tree, trainable, here)
    stacks = {each.use.path: len(each.use.stack) for each in frozen.spec.adapted}
    drawn = {each.use.path: (*group_of(each).remade, KEY) for each in frozen.spec.adapted}
    constants = {}
    for weight, mine in frozen.constants.items():
        theirs = tree["constants"].get(weight, {})
        if "scale" in mine and not jnp.array_equal(mine["scale"], theirs.get("scale")):
            raise ValueError(f"{path}: '{weight}' was trained with another scale; set its alpha")
        _check_matrices(path, weight, mine, theirs, stacks[weight])
        constants[weight] = _with_matrices(path, mine, theirs, stacks[weight], drawn[weight])
    shared, left = [], dict(tree["shared"])
    for number, (variant, mine) in enumerate(frozen.shared_by_group(trainable).items()):
        theirs = left.pop(str(number), {})
        for name, each in mine.trainable.items():
            _check_shape(path, f"the shared '{name}'", theirs.get(name), each)
        fixed = _with_matrices(path, mine.constants, theirs, 0, (*variant.remade, KEY))
        shared.append(Factors({name: theirs[name] for name in mine.trainable}, fixed))
    if any(left.values()):
        raise ValueError(
            f"{path}: its adapters share arrays in {len(tree['shared'])} groups, and this run's in "
            f"{len(shared)}: adapters of equal settings are a group"
        )
    params, anew = _with_params(path, trainable["params"], tree["params"])
    if anew:
        warnings.warn(
            f"{path} has a head for other classes; this run begins with a new one: "
            f"{'; '.join(anew)}",
            stacklevel=2,
        )
    if dropped := [name for name in tree["params"] if name not in params]:
        warnings.warn(
            f"{path} was trained with its own '{dropped[0]}', which this run neither trains nor "
            "loads; name it in also_train",
            stacklevel=2,
        )
    begun = {"adapters": tree["adapters"], "params": params}
    return with_shared_arrays(begun, dataclasses.replace(frozen, constants=constants), shared)


def _completed(
    path: str | os.PathLike,
    tree: dict[str, Any],
    meta: Mapping[str, Any],
    trainable: Trainable,
    frozen: Frozen,
    here: Mapping[str, str],
) -> dict[str, Any]:
    """A file's tree, with what it leaves out made again.

    Raises:
      ValueError: something does not come out as it was.
    """
    if not (left_out := meta.get(REMADE)):
        return tree
    constants = {
        p: {**mine, **tree["constants"].get(p, {})} for p, mine in frozen.constants.items()
    }
    shared = tuple({**m, **tree["shared"].get(str(n), {})} for n, m in enumerate(frozen.shared))
    made = made_again(dataclasses.replace(frozen, constants=constants, shared=shared))
    complete = {part: {where: dict(each) for where, each in tree[part].items()} for part in KEPT}
    for name, saved in left_out.items():
        if name not in made or digest(made[name]) != saved:
            _check_base(path, meta, tree, trainable, here)
            raise ValueError(
                f"{path} leaves out '{name}', and made again here it is not the same: another "
                "variant, machine or version; save_adapter(..., whole=True) leaves out nothing"
            )
        part, where, last = _parts(name)
        complete[part].setdefault(where, {})[last] = made[name]
    return {**tree, **complete}


def _keyed(shared: Mapping[str, Any], frozen: Frozen) -> dict[str, Any]:
    """A file's shared arrays, with a key: files of earlier versions have all of VeRA's but that."""
    own = {str(n): mine for n, mine in enumerate(frozen.shared) if KEY in mine}
    return {n: {KEY: own[n][KEY], **each} if n in own else each for n, each in shared.items()}


def _parts(name: str) -> tuple[str, str, str]:
    """A constant's place in a file's tree, from its whole name."""
    part, _, rest = name.partition("/")
    where, _, last = rest.rpartition("/")
    return part, where, last


def _check_base(
    path: str | os.PathLike,
    meta: Mapping[str, Any],
    tree: Mapping[str, Any],
    trainable: Trainable,
    here: Mapping[str, str],
) -> None:
    if meta.get(BASE):
        require_base(meta[BASE], here, {*tree["params"], *trainable["params"]}, str(path))


def _with_params(
    path: str | os.PathLike, mine: Mapping[str, Array], theirs: Mapping[str, Array]
) -> tuple[dict[str, Array], list[str]]:
    """Fully trained parameters from another run; and those that start anew, with both shapes."""
    found, anew = dict(mine), []
    for name in sorted(mine.keys() & theirs.keys()):
        there, here = theirs[name], mine[name]
        _check_kind(path, name, there, here)
        if there.shape == here.shape:
            found[name] = there
        elif there.ndim == here.ndim and there.shape[:-1] == here.shape[:-1]:
            anew.append(f"{list(there.shape)} for '{name}', here {list(here.shape)}")
        else:
            _check_shape(path, f"'{name}'", there, here)
    return found, anew


def _with_matrices(
    path: str | os.PathLike,
    mine: dict[str, Array],
    theirs: dict[str, Array],
    stack: int,
    drawn: Collection[str],
) -> dict[str, Array]:
    """Constants with what is drawn, and matrices after `stack` stacked axes, from `theirs`."""
    found = dict(mine)
    for name, each in mine.items():
        if (each.ndim - stack >= 2 or name in drawn) and name in theirs:
            found[name] = theirs[name]
            if name == KEY:
                continue  # `_check_keys` has checked it
            _check_shape(path, f"the constant '{name}'", found[name], each)
            _check_kind(path, name, found[name], each)
    return found


def _check_matrices(
    path: str | os.PathLike,
    weight: str,
    mine: Mapping[str, Array],
    theirs: Mapping[str, Array],
    stack: int,
) -> None:
    """Raise a ValueError if only one side has a fixed matrix: trained factors mean nothing then."""
    there, here = (
        {name for name, x in each.items() if x.ndim - stack >= 2} for each in (theirs, mine)
    )
    if there != here:
        raise ValueError(
            f"{path}: '{weight}' was trained with {_matrices(there)}, and this run has "
            f"{_matrices(here)}: begin from it with the variant and initialization of its run"
        )


def _matrices(names: Collection[str]) -> str:
    if not names:
        return "no matrix that stays fixed"
    kind = "a start that is subtracted" if "a0" in names else "matrices that stay fixed"
    return f"{kind} ({', '.join(sorted(names))})"


def _load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a tree of the form that `_tree` gives, and its JSON values.

    Raises a ValueError for any other tree; in it, constants are by weight and name.
    """
    tree, meta = load_tree(path)
    if (
        not isinstance(tree, dict)
        or not {"adapters", "params", *KEPT} <= tree.keys()
        or not all(isinstance(each, dict) for each in tree.values())
        or not all(isinstance(each, dict) for part in KEPT for each in tree[part].values())
    ):
        raise ValueError(f"{path} was not written by lora_jax.save_adapter")
    return tree, meta


def _check_keys(path: str | os.PathLike, tree: Mapping[str, Any], frozen: Frozen) -> None:
    """Raise a ValueError for a file's key that is none. Keys of other kinds are of other sizes."""
    shared = {str(number): each for number, each in enumerate(frozen.shared)}
    mine, _ = flatten({"constants": frozen.constants, "shared": shared})
    theirs, _ = flatten({part: tree[part] for part in KEPT})
    for name, data in theirs.items():
        if name.rpartition("/")[2] == KEY:
            stack = mine.get(name, data).shape[:-1]
            shapes = [(*stack, size) for size in IMPLEMENTATIONS]
            if data.dtype != jnp.uint32 or data.shape not in shapes:
                raise ValueError(
                    f"{path} has {data.dtype}{list(data.shape)} for '{name}', which is not a key"
                )


def _check_shape(path: str | os.PathLike, what: str, there: Any, here: Any) -> None:
    """Raise a ValueError unless both arrays have one shape; None stands for a missing array."""
    shapes = ["nothing" if each is None else list(each.shape) for each in (there, here)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{path} has {shapes[0]} for {what}, expected {shapes[1]}")


def _check_kind(path: str | os.PathLike, name: str, there: Any, here: Any) -> None:
    """Raise a ValueError if one array has floats and the other does not."""
    if jnp.issubdtype(there.dtype, jnp.floating) != jnp.issubdtype(here.dtype, jnp.floating):
        raise ValueError(f"{path} has {there.dtype} for '{name}', expected {here.dtype}")


def _tree(trainable: Trainable, frozen: Frozen) -> dict[str, Any]:
    """What is saved; shared arrays, trained or not, are by the number of their variant."""
    groups = enumerate(frozen.shared_by_group(trainable).values())
    shared = {str(number): {**each.constants, **each.trainable} for number, each in groups}
    shared = {number: each for number, each in shared.items() if each}
    return {**trainable, "constants": frozen.constants, "shared": shared}


def require_finite(tree: Any, where: str) -> None:
    """Raise a ValueError that names the first array with a NaN or an infinity; keys do not count.

    Args:
      where: the adapter, for the message.
    """
    for path, leaf in flatten(tree)[0].items():
        if is_key(leaf) or not isinstance(leaf, jax.Array | np.ndarray):
            continue
        array = to_host(leaf)
        # NumPy has no isfinite for bfloat16 and other small types, but float32 holds all of them.
        if array.dtype.itemsize < 4 and array.dtype.kind not in "biu":
            array = array.astype(np.float32)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise ValueError(f"{where}: '{path}' holds NaN or an infinity")


def save_seen(
    path: str | os.PathLike, seen: Mapping[str, Seen], meta: Mapping[str, Any] | None = None
) -> Path:
    """Write what `Adapted.gather` gave, and JSON values, to a .safetensors file (`save_tree`)."""
    return save_tree(path, {name: each._asdict() for name, each in seen.items()}, meta)


def load_seen(path: str | os.PathLike) -> tuple[dict[str, Seen], dict[str, Any]]:
    """What `save_seen` wrote: for `Adapted.init(..., seen=...)`, which then needs no data.

    Raises:
      ValueError: the file is damaged, or holds something else.
      FileNotFoundError: there is no such file.
    """
    tree, meta = load_tree(path)
    found: dict[str, Seen] = {}
    for name, each in tree.items():
        kinds = [kind for kind in (SeenGradient, SeenInputs) if {*kind._fields} == {*each}]
        if not kinds:
            raise ValueError(f"{path} was not written by lora_jax.save_seen")
        found[name] = kinds[0](**each)
    return found, meta
