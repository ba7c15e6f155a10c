"""JAX's operations by NumPy, for which `lora_jax.compiled.by_numpy` does not need XLA.

An operation that is missing here, or whose rule returns `NotImplemented`, is run by JAX, alone. So
the list need not be complete: each operation here saves the time of compiling it.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
from threadpoolctl import ThreadpoolController

LARGE = 2**29

Rule = Callable[..., Any]


def rule(name: str) -> Rule | None:
    """The rule by which NumPy does the operation of a primitive, or None."""
    return _RULES.get(name)


# -- entry by entry --------------------------------------------------------------------------------


def _plain(function: Callable[..., Any]) -> Rule:
    return lambda params, *operands: function(*operands)


def _of_floats(function: Callable[..., Any]) -> Rule:
    """A rule for floats only: for integers, JAX and NumPy differ in meaning or in dtypes."""

    def one(params: Mapping[str, Any], *operands: np.ndarray) -> Any:
        floats = all(np.issubdtype(x.dtype, np.floating) for x in operands)
        return function(*operands) if floats else NotImplemented

    return one


def _select(params: Mapping[str, Any], which: np.ndarray, *cases: np.ndarray) -> Any:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else NotImplemented


def _integer_pow(params: Mapping[str, Any], x: np.ndarray) -> Any:
    y = params["y"]
    if not np.issubdtype(x.dtype, np.floating):
        return NotImplemented
    result = x  # NumPy's own power takes many times as long
    for _ in range(abs(y) - 1):
        result = result * x
    result = np.ones_like(x) if y == 0 else result
    return 1 / result if y < 0 else result


def _divide(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    """Division; of integers, towards zero."""
    if x.dtype.kind in "fc":
        return np.divide(x, y)
    return NotImplemented if (y == 0).any() else (x - np.fmod(x, y)) // y


def _remainder(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    """What is left of a division towards zero."""
    return NotImplemented if x.dtype.kind != "f" and (y == 0).any() else np.fmod(x, y)


def _convert(dtype: Any, x: np.ndarray) -> Any:
    """Convert to integers and complex numbers by NumPy; for floats, the caller rounds."""
    to = np.dtype(dtype)
    if x.dtype.kind == "c":
        return x if to.kind == "c" else NotImplemented
    if to.kind == "c":
        return x.astype(to)
    if to.kind == "b" or (to.kind in "iu" and x.dtype.kind in "iub"):
        return x.astype(to)
    if to.kind in "iu":
        limits = np.iinfo(to)
        inside = ((x > float(limits.min) - 1) & (x < float(limits.max))).all()
        return x.astype(to) if inside else NotImplemented
    return x if x.dtype.kind == "f" else x.astype(np.float64)


# -- along axes ------------------------------------------------------------------------------------


def _reduction(function: Callable[..., Any], floats: bool = False) -> Rule:
    def one(params: Mapping[str, Any], x: np.ndarray) -> Any:
        if floats and not np.issubdtype(x.dtype, np.floating):
            return NotImplemented
        return function(x, axis=tuple(params["axes"]))

    return one


def product(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    """A `dot_general` as one product of stacks of matrices."""
    if not (np.issubdtype(x.dtype, np.inexact) and np.issubdtype(y.dtype, np.inexact)):
        return NotImplemented
    (sum_x, sum_y), (stack_x, stack_y) = params["dimension_numbers"]
    rest_x = [axis for axis in range(x.ndim) if axis not in (*sum_x, *stack_x)]
    rest_y = [axis for axis in range(y.ndim) if axis not in (*sum_y, *stack_y)]
    stack = [x.shape[axis] for axis in stack_x]
    inside = int(np.prod([x.shape[axis] for axis in sum_x]))
    rows, columns = [x.shape[axis] for axis in rest_x], [y.shape[axis] for axis in rest_y]
    left = x.transpose(*stack_x, *rest_x, *sum_x).reshape(*stack, int(np.prod(rows)), inside)
    right = y.transpose(*stack_y, *sum_y, *rest_y).reshape(*stack, inside, int(np.prod(columns)))
    multiplications = int(np.prod(rows)) * inside * int(np.prod(columns))
    threads = 1 if multiplications < LARGE else None  # more do not help a small product
    with _blas().limit(limits=threads, user_api="blas"):
        return np.matmul(left, right).reshape(*stack, *rows, *columns)


_blas = functools.cache(ThreadpoolController)


# -- shapes and parts ------------------------------------------------------------------------------


def _broadcast(params: Mapping[str, Any], x: np.ndarray, *sizes: Any) -> Any:
    shape, places = params["shape"], params["broadcast_dimensions"]
    if sizes:
        return NotImplemented
    wide = [1] * len(shape)
    for place, size in zip(places, x.shape, strict=True):
        wide[place] = size
    return np.broadcast_to(x.reshape(wide), shape)


def _reshape(params: Mapping[str, Any], x: np.ndarray, *sizes: Any) -> Any:
    return NotImplemented if params["dimensions"] or sizes else x.reshape(params["new_sizes"])


def _iota(params: Mapping[str, Any], *sizes: Any) -> Any:
    shape, axis = params["shape"], params["dimension"]
    if sizes:
        return NotImplemented
    across = [1] * len(shape)
    across[axis] = shape[axis]
    return np.broadcast_to(np.arange(shape[axis], dtype=params["dtype"]).reshape(across), shape)


def _slice(params: Mapping[str, Any], x: np.ndarray) -> Any:
    limits = params["start_indices"], params["limit_indices"]
    return x[tuple(map(slice, *limits, params["strides"] or (1,) * x.ndim))]


def _split(params: Mapping[str, Any], x: np.ndarray) -> Any:
    return np.split(x, np.cumsum(params["sizes"])[:-1], axis=params["axis"])


def _pad(params: Mapping[str, Any], x: np.ndarray, value: np.ndarray) -> Any:
    config = params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        return NotImplemented
    sizes, places = [], []
    for size, (low, high, gap) in zip(x.shape, config, strict=True):
        last = low + max(size + (size - 1) * gap, 0)
        sizes.append(last + high)
        places.append(slice(low, last, gap + 1))
    result = np.full(sizes, value)
    result[tuple(places)] = x
    return result


# -- at places that are computed -------------------------------------------------------------------


def _window(shape: Sequence[int], sizes: Sequence[int], starts: Sequence[Any]) -> tuple[slice, ...]:
    """A part of that size; one that would end outside is moved inside."""
    firsts = [
        min(max(int(start), 0), whole - size)
        for whole, size, start in zip(shape, sizes, starts, strict=True)
    ]
    return tuple(slice(first, first + size) for first, size in zip(firsts, sizes, strict=True))


def _dynamic_slice(params: Mapping[str, Any], x: np.ndarray, *starts: Any) -> Any:
    return x[_window(x.shape, params["slice_sizes"], starts)]


def _dynamic_update(
    params: Mapping[str, Any], x: np.ndarray, part: np.ndarray, *starts: Any
) -> Any:
    result = x.copy()
    result[_window(x.shape, part.shape, starts)] = part
    return result


def _places(
    whole: Sequence[int],
    indices: np.ndarray,
    shape: Sequence[int],
    offsets: Sequence[int],
    collapsed: Sequence[int],
    indexed: Sequence[int],
    batches: tuple[Sequence[int], Sequence[int]],
) -> Any:
    """Where each entry of windows is: an index for each axis; None if one may lie outside.

    The windows together have `shape`, with their own axes at `offsets`.
    """

    def along(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        own = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
        return values.reshape(own)

    outer = [axis for axis in range(len(shape)) if axis not in offsets]
    inner = iter(offsets)
    places = []
    for axis, size in enumerate(whole):
        place = np.zeros([1] * len(shape), np.int64)
        if axis in indexed:
            place = place + along(indices[..., indexed.index(axis)].astype(np.int64), outer)
        if axis in batches[0]:
            row = outer[batches[1][batches[0].index(axis)]]
            place = place + along(np.arange(shape[row]), [row])
        elif axis not in collapsed:
            offset = next(inner)
            place = place + along(np.arange(shape[offset]), [offset])
        if ((place < 0) | (place >= size)).any():
            return None
        places.append(np.broadcast_to(place, shape))
    return tuple(places)


def _gather(params: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> Any:
    how, sizes = params["dimension_numbers"], params["slice_sizes"]
    left_out = {*how.collapsed_slice_dims, *how.operand_batching_dims}
    inner = iter([size for axis, size in enumerate(sizes) if axis not in left_out])
    outer, rank = iter(indices.shape[:-1]), indices.ndim - 1 + len(how.offset_dims)
    shape = [next(inner if axis in how.offset_dims else outer) for axis in range(rank)]
    batches = how.operand_batching_dims, how.start_indices_batching_dims
    places = _places(
        x.shape,
        indices,
        shape,
        how.offset_dims,
        how.collapsed_slice_dims,
        how.start_index_map,
        batches,
    )
    return NotImplemented if places is None else x[places]


def _scatter(put: Callable[..., Any]) -> Rule:
    """A rule that puts updates where they belong in a copy."""

    def one(params: Mapping[str, Any], x: np.ndarray, indices: np.ndarray, new: np.ndarray) -> Any:
        how, result = params["dimension_numbers"], x.copy()
        batches = how.operand_batching_dims, how.scatter_indices_batching_dims
        places = _places(
            x.shape,
            indices,
            new.shape,
            how.update_window_dims,
            how.inserted_window_dims,
            how.scatter_dims_to_operand_dims,
            batches,
        )
        if places is None:
            return NotImplemented
        put(result, places, new)
        return result

    return one


def _top_k(params: Mapping[str, Any], x: np.ndarray) -> Any:
    axis = params.get("axis", -1)
    if x.dtype.kind != "f" or np.isnan(x).any():
        return NotImplemented
    order = np.argsort(-x, axis=axis, kind="stable").take(range(params["k"]), axis=axis)
    return np.take_along_axis(x, order, axis=axis), order


# -- bits ------------------------------------------------------------------------------------------


def _shift(function: Callable[..., Any]) -> Rule:
    def one(params: Mapping[str, Any], x: np.ndarray, bits: np.ndarray) -> Any:
        defined = x.dtype.kind == "u" and (bits < 8 * x.dtype.itemsize).all()
        return function(x, bits) if defined else NotImplemented

    return one


def _bitcast(params: Mapping[str, Any], x: np.ndarray) -> Any:
    """The bits of whole numbers; floats may be held in a dtype that is not theirs."""
    to = np.dtype(params["new_dtype"])
    same = x.dtype.kind in "iu" and to.itemsize == x.dtype.itemsize
    return x.view(to) if same else NotImplemented


_RULES: dict[str, Rule] = {
    "add": _plain(np.add),
    "add_any": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "neg": _plain(np.negative),
    "square": _plain(np.square),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "abs": _plain(np.abs),
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "clamp": _plain(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    "copy": _plain(lambda x: x),
    "copy_p": _plain(lambda x: x),
    "stop_gradient": _plain(lambda x: x),
    "sharding_constraint": _plain(lambda x: x),
    "optimization_barrier": lambda params, *operands: operands,
    "name": _plain(lambda x: x),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "xor": _plain(np.bitwise_xor),
    "not": _plain(np.bitwise_not),
    "is_finite": _plain(np.isfinite),
    "select_n": _select,
    "integer_pow": _integer_pow,
    "div": _divide,
    "pow": _of_floats(np.power),
    "real": _plain(np.real),
    "imag": _plain(np.imag),
    "conj": _plain(np.conj),
    "exp": _of_floats(np.exp),
    "exp2": _of_floats(np.exp2),
    "expm1": _of_floats(np.expm1),
    "log": _of_floats(np.log),
    "log1p": _of_floats(np.log1p),
    "sin": _of_floats(np.sin),
    "cos": _of_floats(np.cos),
    "tanh": _of_floats(np.tanh),
    "sqrt": _of_floats(np.sqrt),
    "rsqrt": _of_floats(lambda x: 1 / np.sqrt(x)),
    "logistic": _of_floats(lambda x: 1 / (1 + np.exp(-x))),
    "erf": _of_floats(scipy.special.erf),
    "erfc": _of_floats(scipy.special.erfc),
    "erf_inv": _of_floats(scipy.special.erfinv),
    "sign": _of_floats(np.sign),
    "rem": _remainder,
    "shift_left": _shift(np.left_shift),
    "shift_right_logical": _shift(np.right_shift),
    "bitcast_convert_type": _bitcast,
    # along axes
    "reduce_sum": _reduction(np.sum, floats=True),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "reduce_and": _reduction(np.all),
    "reduce_or": _reduction(np.any),
    "argmax": lambda params, x: np.argmax(x, *params["axes"]),
    "argmin": lambda params, x: np.argmin(x, *params["axes"]),
    # shapes and parts
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "iota": _iota,
    "dot_general": product,
    "pad": _pad,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    "scatter": _scatter(operator.setitem),
    "scatter-add": _scatter(np.add.at),
    "top_k": _top_k,
    "transpose": lambda params, x: x.transpose(params["permutation"]),
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "convert_element_type": lambda params, x: _convert(params["new_dtype"], x),
}
