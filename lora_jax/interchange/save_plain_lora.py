"""Write any adapter as plain LoRA, in the one form that all servers compute alike.

PEFT's format has more than servers read: vLLM drops ranks and alphas of single modules, SGLang
takes alpha / rank for rsLoRA's scale, llama.cpp takes the rank of each tensor. Here every scale is
a part of B, `lora_alpha` is `r`, and all matrices have that rank, filled up with zeros.

`write_gguf_lora` makes of it the GGUF file that llama.cpp loads beside a model (`--lora`).
llama.cpp computes W x + (alpha / rank) B A x, with the file's alpha and the rank of each tensor, on
weights in its own layout (`models.published.gguf`). Where that layout has the rows of queries and
keys in another order, so has B. llama.cpp's convert_lora_to_gguf.py makes the same of a folder.
"""

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters.updates import Factored, dense, of_rank, update_of, widened
from lora_jax.files.arrays import to_host
from lora_jax.files.atomic import replacing
from lora_jax.files.gguf_file import library
from lora_jax.interchange.matrices import Matrix, by_module, matrices
from lora_jax.interchange.names import MODEL, Names, rows
from lora_jax.interchange.peft_folder import PeftFolder, write_folder
from lora_jax.methods.peft_lora import LINEAR, as_peft
from lora_jax.models.parts.config_checks import DecoderConfig
from lora_jax.models.published.gguf import architecture, gguf_name, neighbours_turned, turned_heads
from lora_jax.peft_format import Peft, stored
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.variant import Factors

SERVED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The modules that both vLLM and SGLang adapt."""
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""


class PlainLora(NamedTuple):
    """What was written."""

    folder: Path
    rank: int
    max_lora_rank: int
    """The least `--max-lora-rank` with which vLLM loads it; its default is 16."""
    errors: Mapping[str, float]
    """By module, how far a truncated update is from the whole one: the ratio of their norms."""


def save_plain_lora(
    folder: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    *,
    svd_rank: int | None = None,
    base_model: str | None = None,
    dtype: Any = None,
    served: tuple[str, ...] | None = SERVED,
) -> PlainLora:
    """Write a folder that vLLM, SGLang, llama.cpp's converter and PEFT load, and compute alike.

    Args:
      names, base_model, dtype: as for `save_peft`.
      svd_rank: cut the update of every module of torch to its leading directions, if its rank is
        higher; the errors are in the result. Parts of one module, such as GPT-2's queries, keys
        and values, are cut together. Without it, a method that is not a plain LoRA is refused.
      served: the last names of modules that the server adapts; None allows all.

    Raises:
      ValueError: a method, a module or a trained parameter that servers do not have, or a rank that
        none loads. Nothing is written.
    """
    _require_adapters_alone(trainable, frozen)
    found, errors = _by_module(trainable, frozen, names, svd_rank, served)
    rank = max(peft.settings["r"] for peft in found.values())
    largest = _max_lora_rank(rank)
    tensors = {
        f"{MODEL}{module}.{name}": _padded(x, 0 if "lora_A" in name else 1, rank)
        for module, peft in found.items()
        for name, x in peft.tensors.items()
    }
    config = _config(found, rank, base_model)
    config["target_modules"] = _target_modules(
        found, {row.module for row in rows(names, frozen.base)}
    )
    path = write_folder(folder, config, tensors, dtype)
    return PlainLora(path, rank, largest, errors)


def _by_module(
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    svd_rank: int | None,
    served: tuple[str, ...] | None,
) -> tuple[dict[str, Peft], dict[str, float]]:
    """The LoRA of every module, of scale 1, and the relative error of each that may be cut."""
    pefts: list[tuple[Matrix, Peft]] = []
    errors: dict[str, float] = {}
    for each in matrices(trainable, frozen, names):
        _require_served(each, served)
        (a, b), errors[each.module] = _factors(each, svd_rank)
        pefts.append((each, as_peft(a, b, 1.0, Factors({}, {}), False)))
    found = by_module(pefts)
    if svd_rank is None:
        return found, {}
    dtypes = {each.module: _dtype(each) for each, _ in pefts}
    for module, peft in found.items():
        found[module], error = _cut(peft, svd_rank, dtypes[module])
        errors[module] = max(error, errors[module])
    return found, errors


def _require_adapters_alone(trainable: Trainable, frozen: Frozen) -> None:
    if trainable["params"]:
        raise ValueError(
            f"'{min(trainable['params'])}' trains in full, and servers take adapters alone: merge "
            "the weights"
        )
    if biased := next((each for each in frozen.spec.adapted if each.bias), None):
        raise ValueError(
            f"'{biased.bias}' is adapted with '{biased.use.path}', and plain LoRA has no biases: "
            "merge the weights"
        )


def _require_served(each: Matrix, served: tuple[str, ...] | None) -> None:
    if each.lookup:
        raise ValueError(
            f"'{each.path}' is an embedding, and servers adapt matrices alone: merge the weights"
        )
    if served and each.module.rpartition(".")[2] not in served:
        known = ", ".join(served)
        raise ValueError(f"'{each.module}' is not served: {known} are; merge the weights")


def _max_lora_rank(rank: int) -> int:
    limits = [each for each in MAX_LORA_RANKS if each >= rank]
    if not limits:
        raise ValueError(
            f"rank {rank} exceeds {MAX_LORA_RANKS[-1]}, the most that is served; "
            f"merge the weights, or give an svd_rank of at most {MAX_LORA_RANKS[-1]}"
        )
    return limits[0]


def _config(found: Mapping[str, Peft], rank: int, base_model: str | None) -> dict[str, Any]:
    """adapter_config.json of modules that have a scale of 1 and no settings of their own."""
    first = next(iter(found.values())).settings
    return {
        **{key: value for key, value in first.items() if not key.endswith("_pattern")},
        **{"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"},
        **{"base_model_name_or_path": base_model, "inference_mode": True},
    }


def _target_modules(found: Collection[str], known: Collection[str]) -> list[str]:
    """The last names of the modules; a whole name where one without an adapter ends alike.

    PEFT would put an adapter into that one, too, and miss its tensors.
    """
    last = {module: module.rpartition(".")[2] for module in (*found, *known)}
    others = {name for module, name in last.items() if module not in found}
    return sorted({module if last[module] in others else last[module] for module in found})


def _factors(each: Matrix, svd_rank: int | None) -> tuple[Factored, float]:
    """The update of one matrix, and the relative error of what is cut off.

    A dense part of a joined weight is left whole: it is cut with the others.
    """
    if (both := each.variant.as_lora(each.base, each.factors)) is not None:
        return Factored(*map(to_host, both)), 0.0
    if svd_rank is None:
        title = each.variant.title or type(each.variant).__name__
        raise ValueError(
            f"'{each.path}': {title} is not a plain LoRA, which is all that servers take; "
            "merge the weights, or give svd_rank"
        )
    with jax.enable_x64(True):
        update = update_of(each.variant, each.base.astype(jnp.float64), widened(each.factors))
        if each.place.part is not None:
            return Factored(np.eye(each.base.shape[0], dtype=np.float32), dense(update)), 0.0
        cut, error = of_rank(update, min(svd_rank, *each.base.shape))
    return Factored(*(x.astype(_dtype(each)) for x in cut)), error


def _dtype(each: Matrix) -> Any:
    return jnp.result_type(*jax.tree.leaves(each.factors.trainable))


def _cut(peft: Peft, rank: int, dtype: Any) -> tuple[Peft, float]:
    """The closest LoRA of a rank to one of scale 1, and its relative error."""
    a, b = (peft.tensors[LINEAR[name].name].astype(np.float64) for name in "ab")
    if len(a) <= rank:
        return peft, 0.0
    cut, error = of_rank(Factored(a, b.T), min(rank, a.shape[1], len(b)))
    factors = {"a": cut.a.astype(dtype), "b": cut.b.astype(dtype)}
    settings = {**peft.settings, "r": len(cut.a), "lora_alpha": len(cut.a)}
    return Peft(settings, stored(LINEAR, factors)), error


def _padded(x: np.ndarray, axis: int, rank: int) -> np.ndarray:
    missing = [(0, 0), (0, 0)]
    missing[axis] = (0, rank - x.shape[axis])
    return np.pad(x, missing)


_A, _B = ".lora_A.weight", ".lora_B.weight"


def write_gguf_lora(
    path: str | os.PathLike, folder: str | os.PathLike, config: DecoderConfig
) -> Path:
    """Write the adapter of a folder of `save_plain_lora` as one GGUF file, in float32.

    Args:
      path: the file to write, whole or not at all; its folder is made.
      folder: what `save_plain_lora(..., served=None)` has written.
      config: the model's own, such as a `LlamaConfig`.

    Raises:
      ValueError: a module that llama.cpp has not, or the package `gguf` is not installed.
    """
    path = Path(path)
    gguf = library(path)
    source = PeftFolder(folder)
    tensors: dict[str, np.ndarray] = {}
    for name in source.names():
        module, end = name.removeprefix(MODEL), name[-len(_A) :]
        weight = f"{module.removesuffix(end)}.weight"
        tensor = source.read(name).astype(np.float32)
        heads = turned_heads(weight, config)
        if end == _B and heads is not None:
            tensor = neighbours_turned(tensor, heads)
        stored = gguf_name(weight, config)
        tensors[f"{stored}.lora_{'a' if end == _A else 'b'}"] = np.ascontiguousarray(tensor)
    arch = architecture(config)
    with (
        replacing(path) as temporary,
        contextlib.closing(gguf.GGUFWriter(temporary, arch)) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(source.config["lora_alpha"]))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return path
