"""Parameter trees: names of leaves, trees split and combined again, and Flax NNX models."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.tree_util import DictKey, GetAttrKey, keystr

from lora_jax.messages import nearest

if TYPE_CHECKING:
    from flax import nnx

PyTree = Any
Where = str | Sequence[str] | Callable[[str, Any], bool]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Absent:
    """Takes the place of a leaf that is in the other part; a pytree node without leaves."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


def path_name(keys: tuple[Any, ...]) -> str:
    """A key path as `a/b/c`; the inner `value` of an NNX variable is left out."""
    if len(keys) > 1 and keys[-1] == GetAttrKey("value") and isinstance(keys[-2], DictKey):
        keys = keys[:-1]
    return keystr(keys, simple=True, separator="/")


def flatten(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """The leaves of `tree` by path, in tree order, and its structure.

    Raises:
      ValueError: two leaves share a path (for example the dictionary keys `1` and `"1"`), or the
        tree is a model of Flax NNX.
    """
    if is_module(tree, "nnx"):
        raise ValueError(
            f"expected the parameters of a {type(tree).__name__}: "
            "forward, params = lj.from_nnx(model) gives them"
        )
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {path_name(keys): leaf for keys, leaf in pairs}
    if len(leaves) < len(pairs):
        names = [path_name(keys) for keys, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two leaves of the parameter tree share the path '{double}'")
    return leaves, treedef


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The arrays of a tree, of which one layer is made at a time."""

    shapes: Mapping[str, Any]
    """The shape and dtype of each array by its path; stacked layers come first."""
    part: Callable[[str, int | None], Any]
    """From a path and the number of a layer to that layer; without a number to the whole array.

    Its dtype may be wider than in `shapes`.
    """


def parts_of(tree: PyTree) -> Parts:
    """The parts of a tree that is there as a whole; `Parts` stay as they are."""
    if isinstance(tree, Parts):
        return tree
    leaves, _ = flatten(tree)
    return Parts(leaves, lambda path, layer: leaves[path] if layer is None else leaves[path][layer])


def matches(pattern: str, path: str) -> bool:
    """Whether the regular expression matches the whole path, or its tail after a `/`."""
    try:
        return re.fullmatch(rf"(?:.*/)?(?:{pattern})", path) is not None
    except re.error as error:
        raise ValueError(
            f"pattern {_quoted(pattern)} is not a regular expression: {error}"
        ) from None


def selected(pattern: str, paths: Collection[str]) -> set[str]:
    """The path that a pattern is, letter by letter, if there is one; else all that it matches.

    So a path that `discover` gives selects one weight, also where it is the tail of another.
    """
    return {pattern} if pattern in paths else {path for path in paths if matches(pattern, path)}


def _quoted(pattern: str) -> str:
    """A pattern for a message of one line."""
    return f"'{pattern}'" if pattern.isprintable() else repr(pattern)


def only(path: str) -> str:
    """A pattern of this path alone: without the look back, paths that end in it match, too."""
    return rf"(?<!/){re.escape(path)}"


def select_paths(
    patterns: Sequence[str],
    paths: Iterable[str],
    what: str = "parameter",
    words: Sequence[str] = (),
) -> list[str]:
    """The paths that match any pattern, in the order of `paths`.

    Args:
      words: other words that a pattern may have been meant to be; the error may suggest them.

    Raises:
      ValueError: a pattern matches no path; the message lists the nearest ones.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        if not (own := selected(pattern, paths)):
            close = nearest(pattern, [*paths, *words])
            raise ValueError(f"pattern {_quoted(pattern)} matches no {what}; nearest: {close}")
        chosen |= own
    return [path for path in paths if path in chosen]


def partition(tree: PyTree, where: Where) -> tuple[PyTree, PyTree]:
    """Split a tree into two of its structure: the leaves that `where` selects, and the rest.

    Args:
      tree: any pytree: dictionaries, `nnx.State`, Equinox modules.
      where: one or more patterns (regular expressions for a path or its tail, see `matches`),
        or a function of path and leaf.

    Returns:
      `(selected, rest)`. Each holds `ABSENT` (no leaf) where the other holds the leaf, so
      `combine(selected, rest)` gives the tree back.

    Raises:
      ValueError: a pattern matches no leaf.
    """
    leaves, treedef = flatten(tree)
    if callable(where):
        chosen = {path for path, leaf in leaves.items() if where(path, leaf)}
    else:
        chosen = set(select_paths([where] if isinstance(where, str) else where, leaves, "leaf"))
    selected = [leaf if path in chosen else ABSENT for path, leaf in leaves.items()]
    rest = [ABSENT if path in chosen else leaf for path, leaf in leaves.items()]
    return treedef.unflatten(selected), treedef.unflatten(rest)


def combine(first: PyTree, second: PyTree) -> PyTree:
    """Undo `partition`: one tree from two, each leaf present in exactly one of them.

    Raises:
      ValueError: the trees differ in structure, or a leaf is in both or in neither.
    """

    def absent(leaf: Any) -> bool:
        return isinstance(leaf, Absent)

    pairs, treedef = jax.tree_util.tree_flatten_with_path(first, is_leaf=absent)
    others, other_def = jax.tree_util.tree_flatten(second, is_leaf=absent)
    if treedef != other_def:
        raise ValueError(f"cannot combine trees of different structure: {treedef} and {other_def}")
    leaves = []
    for (keys, mine), theirs in zip(pairs, others, strict=True):
        if absent(mine) == absent(theirs):
            place = "neither part" if absent(mine) else "both parts"
            raise ValueError(f"'{path_name(keys)}' is in {place}")
        leaves.append(theirs if absent(mine) else mine)
    return treedef.unflatten(leaves)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or stands for one, and is not a setting."""
    # A type has these attributes, too: `np.float32` itself, whose instances are arrays.
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)


def split_arrays(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and a function that rebuilds the tree with other arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def rebuild(arrays: list[Any]) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return treedef.unflatten(filled)

    return [leaves[i] for i in places], rebuild


def is_module(model: Any, kind: str) -> bool:
    """Whether this is a model of Flax's `nnx` or `linen`, which need not be imported here."""
    flax = sys.modules.get(f"flax.{kind}")
    return flax is not None and isinstance(model, flax.Module)


def _is_module_class(model: Any) -> bool:
    """Whether this is the class of a Flax model, and not a model."""
    flax = [sys.modules.get(f"flax.{kind}") for kind in ("nnx", "linen")]
    return isinstance(model, type) and any(f and issubclass(model, f.Module) for f in flax)


def require_function(forward: Any) -> None:
    """Raise a ValueError unless this can be a function of its parameters."""
    instead = ""
    if _is_module_class(forward):
        instead = f": make a model of {forward.__name__} first"
    elif is_module(forward, "nnx"):
        instead = ": forward, params = lj.from_nnx(model) makes one of a Flax NNX model"
    elif is_module(forward, "linen"):
        instead = ": model.apply is that of a Linen model"
    if instead or not callable(forward):
        given = "class" if isinstance(forward, type) else type(forward).__name__
        raise ValueError(f"adapt takes a function of parameters, not a {given}{instead}")


def _is_linen_apply(forward: Any) -> bool:
    """Whether this is a method of a Linen model, perhaps in a partial or under `jax.jit`."""
    while forward is not None and not is_module(getattr(forward, "__self__", None), "linen"):
        forward = getattr(forward, "func", getattr(forward, "__wrapped__", None))
    return forward is not None


@contextlib.contextmanager
def naming_collections(forward: Callable[..., Any], params: Any) -> Iterator[None]:
    """Say what `model.apply` of a Linen model takes, if it failed as it got the parameters alone.

    Only a call that has failed is judged, as a model without parameters needs no collection.
    """
    try:
        yield
    except Exception as error:
        kind, alone = type(error).__name__, isinstance(params, Mapping) and "params" not in params
        missing = kind == "ScopeCollectionNotFound" and '"params"' in str(error)
        missing |= kind == "ApplyScopeInvalidVariablesTypeError"  # of a model that is one layer
        if missing and alone and _is_linen_apply(forward):
            raise ValueError(
                "expected the variables {'params': params}, as model.init returns them: "
                "model.apply of a Linen model does not take the parameters alone"
            ) from error
        raise


def from_nnx(model: "nnx.Module") -> tuple[Callable[..., Any], "nnx.State"]:
    """An NNX model as `(forward, params)`, with `forward(params, *args, **kwargs) = model(...)`.

    Changes that a call makes to the model (dropout counters, batch statistics) are not kept.
    """
    from flax import nnx  # not above: who has other models need not wait for it

    if not isinstance(model, nnx.Module):
        if _is_module_class(model):
            instead = f"a class: make a model of {model.__name__} first"
        else:
            own = "model.apply" if is_module(model, "linen") else "a function of parameters"
            instead = f"a {type(model).__name__}; adapt takes {own} without from_nnx"
        raise ValueError(f"from_nnx takes a model of Flax NNX, not {instead}")
    graph, params = nnx.split(model)

    def forward(params: Any, /, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graph, params)(*args, **kwargs)

    return forward, params
