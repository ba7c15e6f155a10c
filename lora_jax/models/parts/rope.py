"""Rotary position embeddings: frequencies, their scalings for long contexts, and the rotation.

Su et al., 2021 (arXiv:2104.09864), in the half-rotation convention of transformers: feature i of a
head is rotated together with feature i + head_dim / 2, not with its neighbour as in the paper. The
query and key projections of published checkpoints are ordered for this convention.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from lora_jax.base import wide
from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.config_checks import check_flag, check_integer, check_positive, shown

# type -> the fields that it takes; those in `_NEEDED` are required.
_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "original_max_position_embeddings",
    ),
}
_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")
# The numbers of Llama 3.1 and its successors; a GGUF file holds only their effect on frequencies.
_LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The base of the rotary frequencies and their scaling, by transformers' names.

    Types: `default` (plain); `linear` (positions divided by `factor`); `dynamic` (plain up to
    max_position_embeddings, and refused beyond it: there the frequencies would change with the
    length of the text, so packed documents and cached keys would become wrong); `llama3` (Llama
    3.1: low frequencies divided by `factor`, high ones kept, those between interpolated); `yarn`
    (Peng et al., 2023, arXiv:2309.00071).
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: Any = None
    low_freq_factor: Any = None
    high_freq_factor: Any = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    original_max_position_embeddings: Any = None

    def __post_init__(self):
        check_positive("rope_theta", self.rope_theta)
        if self.rope_theta <= 1:  # frequencies would be equal, or increase
            raise ValueError(f"rope_theta must be above 1, got {shown(self.rope_theta)}")
        if not isinstance(self.rope_type, str) or self.rope_type not in _FIELDS:
            raise ValueError(
                f"rope_type {shown(self.rope_type)} is not supported; "
                f"supported: {', '.join(_FIELDS)}"
            )
        check_flag("truncate", self.truncate)
        for name in _FIELDS[self.rope_type]:
            value = getattr(self, name)
            if value is None and name in _NEEDED:
                raise ValueError(f"rope_type {shown(self.rope_type)} needs {name}")
            if name == "original_max_position_embeddings":
                check_integer(name, value, least=1)
            elif name != "truncate" and value is not None:
                check_positive(name, value)
        if self.factor is not None and self.factor < 1:
            raise ValueError(
                f"factor of rope_type {shown(self.rope_type)} must be >= 1: {self.factor}"
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise ValueError(f"high_freq_factor {high} must be above low_freq_factor {low}")

    @classmethod
    def from_json(cls, config: Mapping[str, Any], max_position_embeddings: int) -> "Rope":
        """Read a config.json: `rope_theta` and `rope_scaling`, or version 5's `rope_parameters`.

        Fields that a type does not use are ignored. ValueError for an unsupported type, a missing
        number, and partly rotated or interleaved heads.
        """
        given: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"rope_scaling must be an object, got {shown(given)}")
        if any(isinstance(value, Mapping) for value in given.values()):
            raise ValueError(f"rope_parameters by layer type are not supported: {shown(given)}")
        kind = given.get("rope_type", given.get("type", "default"))
        for feature, only in (("partial_rotary_factor", 1.0), ("rope_interleaved", False)):
            for value in (given.get(feature), config.get(feature)):
                if value is not None and value != only:
                    raise ValueError(f"{feature} {shown(value)} is not supported, only {only}")
        fields = _FIELDS.get(kind, ()) if isinstance(kind, str) else ()
        chosen = {name: given[name] for name in fields if given.get(name) is not None}
        if "original_max_position_embeddings" in fields:
            outside = config.get("original_max_position_embeddings")
            inside = chosen.get("original_max_position_embeddings", max_position_embeddings)
            chosen["original_max_position_embeddings"] = inside if outside is None else outside
        theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
        return cls(theta, kind, **chosen)

    @classmethod
    def from_gguf(cls, file: GgufFile, head_dim: int, max_position_embeddings: int) -> "Rope":
        """Read the metadata of a GGUF file; ValueError for an unsupported scaling."""
        kind = file.value("general.architecture")

        def of(key: str, default: Any = None) -> Any:
            return file.number(f"{kind}.rope.{key}", default)

        theta, scaling = of("freq_base", 10000.0), of("scaling.type", "none")
        factor = of("scaling.factor") or of("scale_linear") or 1.0
        if "rope_freqs.weight" in file:
            return _llama3_of(file.read("rope_freqs.weight"), theta, head_dim)
        if scaling == "none" and of("scale_linear"):  # files older than scaling.type
            scaling = "linear"
        if scaling == "none" or (scaling == "linear" and factor == 1):
            return cls(theta)
        if scaling == "linear":
            return cls(theta, "linear", factor=factor)
        if scaling != "yarn":
            raise ValueError(
                f"rope.scaling.type {shown(scaling)} is not supported; supported: linear, yarn"
            )
        if of("scaling.attn_factor", 1.0) != 1 or of("scaling.yarn_attn_factor", 1.0) != 1:
            raise ValueError("rope.scaling.attn_factor other than 1 is not supported")
        length = of("scaling.original_context_length", max_position_embeddings)
        fast, slow = of("scaling.yarn_beta_fast"), of("scaling.yarn_beta_slow")
        numbers: Any = {"factor": factor, "beta_fast": fast, "beta_slow": slow}
        return cls(theta, "yarn", original_max_position_embeddings=length, **numbers)

    def to_json(self) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling`, which every version of transformers reads."""
        names = _FIELDS[self.rope_type]
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        scaling = {"rope_type": self.rope_type, **values} if names else None
        return {"rope_theta": self.rope_theta, "rope_scaling": scaling}


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Radians per position of each pair of features, (head_dim / 2,) float64, and a factor.

    The factor multiplies sines and cosines, and so queries and keys; it is 1 except for `yarn`.
    """
    plain = float(rope.rope_theta) ** -(np.arange(0, head_dim, 2) / head_dim)
    match rope.rope_type:
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, plain)
    return plain, 1.0


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    low, high = rope.low_freq_factor, rope.high_freq_factor
    # The number of turns of a pair within the original context: up to `low`, it is fully scaled.
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _llama3_of(divisors: np.ndarray, theta: float, head_dim: int) -> Rope:
    """The scaling of Llama 3.1, from the number by which a file divides each frequency."""
    wrong = ValueError("tensor 'rope_freqs.weight' is not the scaling of Llama 3.1")
    if divisors.shape != (head_dim // 2,):  # check first: frequencies can be made for any head_dim
        raise wrong
    largest = float(str(np.float32(divisors.max())))
    rope = Rope(theta, "llama3", factor=largest, **_LLAMA3)
    plain, _ = frequencies(Rope(theta), head_dim)
    scaled, _ = frequencies(rope, head_dim)
    if not np.allclose(plain / divisors, scaled, rtol=1e-5):
        raise wrong
    return rope


def _yarn(rope: Rope, plain: np.ndarray) -> tuple[np.ndarray, float]:
    factor, dims = rope.factor, 2 * len(plain)

    def dimension(turns: float) -> float:
        """The feature that makes `turns` turns within the original context (section 3.2)."""
        length = rope.original_max_position_embeddings
        return dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    first, last = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    width = last - first or 0.001
    scaled = np.clip((np.arange(len(plain)) - first) / width, 0, 1)

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1

    attention = rope.attention_factor
    if attention is None and rope.mscale and rope.mscale_all_dim:
        attention = temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    elif attention is None:
        attention = temperature(1.0)
    return plain / factor * scaled + plain * (1 - scaled), attention


class Rotation(NamedTuple):
    """Cosines and sines of every position's angles, each (B or 1, T, 1, head_dim / 2)."""

    cos: Array
    sin: Array


def rotation(rope: Rope, head_dim: int, positions: Array, dtype: DTypeLike) -> Rotation:
    """The rotation of each position, (B or 1, T) integers, in `dtype` or float32 if narrower."""
    turns, factor = frequencies(rope, head_dim)
    exact = wide(dtype)
    angles = positions.astype(exact)[:, :, None, None] * jnp.asarray(turns, exact)[None, None, None]
    scale = jnp.asarray(factor, exact)
    return Rotation(jnp.cos(angles) * scale, jnp.sin(angles) * scale)


def rotate(x: Array, by: Rotation) -> Array:
    """Rotate heads by their positions; x is (B, T, heads, head_dim), its shape and dtype stay."""
    first, second = jnp.split(x.astype(by.cos.dtype), 2, axis=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
