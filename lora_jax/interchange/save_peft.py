"""Write an adapter as a Hugging Face PEFT folder, which `PeftModel.from_pretrained` loads."""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.base import Kernel, Uses, WeightUse
from lora_jax.files.arrays import to_host
from lora_jax.interchange.matrices import (
    Matrix,
    all_params,
    by_module,
    kernels_of,
    matrices,
    torch_tensor,
    trained_rows,
)
from lora_jax.interchange.names import MODEL, SHARED, Names, Row, rows
from lora_jax.interchange.peft_config import joined
from lora_jax.interchange.peft_folder import (
    TOKENS,
    head_adapters,
    head_of,
    of_both,
    write_folder,
)
from lora_jax.methods import peft_convolutions
from lora_jax.peft_format import Peft
from lora_jax.transform.placement import Frozen, Trainable, bias_beside
from lora_jax.variant import TrainingWarning


def save_peft(
    folder: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    dtype: Any = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors; give the folder.

    The base is untouched: what starts from it (PiSSA, OLoRA) is written as LoRA of twice the rank.
    Parameters that train in full are written too: their whole modules as `modules_to_save`, a bias
    beside an adapter as one of its layer. A table that is also the head is two modules in PEFT: if
    it has LoRA or trains in full, both are written, with `ensure_weight_tying` where PEFT has it.

    Args:
      names: what parameters are called in torch: `names_of(model.config)`, or
        `names_from_patterns`.
      base_model: what to say of the base, `base_model_name_or_path`.
      task_type: PEFT's, such as `CAUSAL_LM`. With `SEQ_CLS`, PEFT also saves the
        head: a module `classifier` or `score`, which must train in full.
      dtype: of the tensors; the adapter's own by default.

    Raises:
      ValueError: PEFT cannot compute the same, or a weight has no torch name. Nothing is written.
    """
    params = all_params(trainable, frozen)
    found, heads, shapes = _by_module(trainable, frozen, names, params)
    found = _like_conv1d(found | heads)
    full, whole, biases = _trained_in_full(trainable, frozen, names, set(found))
    weights = {row.module for row in rows(names, params) if row.leaf == "weight"}
    if task_type == "SEQ_CLS":
        whole = with_heads(whole, weights)
    check_modules(set(found), whole, weights, task_type)
    check_wrapped(found, names)
    config = _config(found, whole, biases)
    config |= {"base_model_name_or_path": base_model, "task_type": task_type}
    tied = heads or trainable["params"].keys() & {*frozen.spec.tied}
    if tied and config["peft_type"] == "LORA":
        config["ensure_weight_tying"] = True
    tensors = _tensors(found) | _shared_tensors(trainable, frozen, shapes)
    tensors |= {f"{MODEL}{name}": x for name, x in full.items()}
    return write_folder(folder, config, tensors, dtype)


def _by_module(
    trainable: Trainable, frozen: Frozen, names: Names, params: Mapping[str, Any]
) -> tuple[dict[str, Peft], dict[str, Peft], list[tuple[int, int]]]:
    """The adapters of modules, of heads that are also tables, and all shapes of matrices."""
    named = {row.module for row in rows(names, params) if row.leaf == "bias"}
    dense = {p: x for p, x in params.items() if not isinstance(x, dict)}
    uses = Uses({p: WeightUse(p, x.shape, x.dtype) for p, x in dense.items()})
    biased = {each.use.path for each in frozen.spec.adapted if bias_beside(each.use, uses)}
    stored, shapes = [], []
    every = list(matrices(trainable, frozen, names, kernels=True))
    adapted = {each.place.name: each.path for each in every}
    for row in rows(names, {p: params[p] for p in trainable["params"] if p in params}):
        if other := adapted.get(row.place.name):
            raise ValueError(
                f"'{row.path}' trains in full, and '{other}' has an adapter; PEFT has both in one "
                f"module, '{row.module}': merge the weights instead"
            )
    for each in every:
        peft = _stored(each)
        bias = each.path in biased or each.module in named
        if peft.biases and not each.variant.adapts_bias and bias:
            raise ValueError(f"'{each.path}': PEFT also changes the bias of its layer: biases=True")
        stored.append((each, peft))
        shapes.append(each.base.shape)
    return by_module(stored), head_adapters(stored, names), shapes


def _config(found: Mapping[str, Peft], whole: set[str], biases: list[str]) -> dict[str, Any]:
    """adapter_config.json.

    Args:
      found: the adapters by module.
      whole: the modules to save.
      biases: the biases that train beside adapters.
    """
    tokens = _tokens_beside(found)
    config = joined({m: peft.settings for m, peft in found.items() if m not in tokens})
    if biases and "bias" not in config:
        raise ValueError(f"PEFT's {config['peft_type']} trains no bias, and '{biases[0]}' is one")
    return {
        **config,
        **({"trainable_token_indices": tokens} if tokens else {}),
        **({"bias": "lora_only"} if biases else {}),
        "auto_mapping": None,
        "inference_mode": True,
        "modules_to_save": sorted(whole) or None,
        "target_modules": sorted(found.keys() - tokens),
    }


def _tensors(found: Mapping[str, Peft]) -> dict[str, Any]:
    """The tensors of all modules, by their names in the file."""
    tokens = _tokens_beside(found)
    return {
        f"{MODEL}{module}.{TOKENS if module in tokens else ''}{name}": x
        for module, peft in found.items()
        for name, x in peft.tensors.items()
    }


def _shared_tensors(
    trainable: Trainable, frozen: Frozen, shapes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """What all modules share, such as VeRA's projections."""
    found: dict[str, Any] = {}
    for variant, shared in frozen.shared_by_group(trainable).items():
        arrays = jax.tree.map(to_host, {**shared.constants, **shared.trainable})
        for name, x in variant.shared_to_peft(arrays, shapes).items():
            if not np.array_equal(x, found.setdefault(f"{SHARED}{name}", x)):
                raise ValueError(f"PEFT has one {name} for all modules, and here are two")
    return found


def _like_conv1d(found: dict[str, Peft]) -> dict[str, Peft]:
    """All with `fan_in_fan_out` if one is a Conv1D: PEFT takes it back for other layers."""
    if not any(peft.settings.get("fan_in_fan_out") for peft in found.values()):
        return found
    conv1d = {"fan_in_fan_out": True}
    return {m: peft._replace(settings={**peft.settings, **conv1d}) for m, peft in found.items()}


def _tokens_beside(found: Mapping[str, Peft]) -> dict[str, list[int]]:
    """The tokens that train beside LoRA of other modules, by module; none if they train alone."""
    kinds = {module: peft.settings["peft_type"] for module, peft in found.items()}
    if {*kinds.values()} != {"LORA", "TRAINABLE_TOKENS"}:
        return {}
    chosen = (module for module, kind in kinds.items() if kind == "TRAINABLE_TOKENS")
    return {module: found[module].settings["token_indices"] for module in chosen}


def _stored(each: Matrix) -> Peft:
    peft = each.variant.to_peft(each.base, each.factors, each.lookup)
    title = each.variant.title or type(each.variant).__name__
    if peft is None:
        what = "an embedding" if each.lookup else "this matrix"
        raise ValueError(
            f"'{each.path}': PEFT cannot compute {title} of {what} as it is here; "
            "merge the weights instead"
        )
    if each.kernel:
        peft = _of_convolution(each, each.kernel, peft)
    tokens = peft.settings["peft_type"] == "TRAINABLE_TOKENS"
    if each.tied and not tokens and not of_both(peft.tensors):
        raise ValueError(
            f"'{each.path}' is also the head, which PEFT's {title} leaves as it is; "
            "merge the weights instead"
        )
    if each.conv1d:
        if "fan_in_fan_out" not in peft.settings:
            raise ValueError(f"'{each.path}': PEFT has no {title} for Conv1D; merge the weights")
        peft = peft._replace(settings={**peft.settings, "fan_in_fan_out": True})
    return peft


def _of_convolution(each: Matrix, kernel: Kernel, peft: Peft) -> Peft:
    try:
        found = peft_convolutions.to_torch(kernel, peft)
    except ValueError as error:
        raise ValueError(f"'{each.path}': {error}; merge the weights instead") from None
    if kernel.dilated and peft.settings["peft_type"] == "LORA":
        warnings.warn(
            f"'{each.path}' is dilated, and PEFT (0.21) forgets that in its LoRA of a convolution: "
            "merge it there (merge_and_unload)",
            TrainingWarning,
            stacklevel=4,
        )
    return found


def _trained_in_full(
    trainable: Trainable, frozen: Frozen, names: Names, adapted: set[str]
) -> tuple[dict[str, np.ndarray], set[str], list[str]]:
    """The tensors of parameters that train in full, the modules to save, and biases of adapters.

    A module is saved whole, so tensors of it that do not train are those of the base. PEFT asks for
    the biases of all adapters if it is given one.
    """
    params = all_params(trainable, frozen)
    every = list(rows(names, params))
    trained = trained_rows(trainable, every)
    beside = [row for row in trained if row.module in adapted]
    whole = {row.module for row in trained} - adapted
    wanted = [row for row in every if row.module in whole]
    if beside:
        wanted += [row for row in every if row.module in adapted and row.leaf == "bias"]
    parts: dict[str, list[Row]] = {}
    for row in wanted:
        name = f"{row.module}.base_layer.bias" if row.module in adapted else row.place.name
        parts.setdefault(name, []).append(row)
    kernels = kernels_of(frozen)
    found = {name: torch_tensor(each, params, names, kernels) for name, each in parts.items()}
    for row in trained:
        if row.path in frozen.spec.tied:
            head = head_of(names, row.path)
            found[f"{head}.weight"] = found[row.place.name]
            whole.add(head)
    return found, whole, [row.path for row in beside]


HEADS = ("classifier", "score")
"""What PEFT saves whole with SEQ_CLS."""


def with_heads(whole: set[str], known: set[str]) -> set[str]:
    """The modules to save, with a head in the place of its parts, such as RoBERTa's two layers.

    PEFT saves the head whole with SEQ_CLS, and does not know a module to save inside another one.

    Args:
      whole, known: the modules that train in full, and all with a weight.

    Raises:
      ValueError: only some parts of a head train.
    """
    for head in HEADS:
        parts = {each for each in known if each.startswith(f"{head}.")}
        if parts & whole:
            if missing := sorted(parts - whole):
                raise ValueError(
                    f"with SEQ_CLS, PEFT saves '{head}' whole, and '{missing[0]}' does not train "
                    "in full: leave task_type out"
                )
            whole = whole - parts | {head}
    return whole


def check_modules(adapted: set[str], whole: set[str], known: set[str], task: str | None) -> None:
    """PEFT also adapts what ends in the name of a module, and adapts nothing that it saves whole.

    Args:
      adapted, whole, known: the modules with an adapter, those to save, and all with a weight.

    Raises:
      ValueError: PEFT would take other modules than these.
    """
    for name in sorted(known - adapted - whole):
        if one := next((each for each in adapted if name.endswith(f".{each}")), None):
            raise ValueError(f"PEFT would adapt '{name}', too, for it ends in '{one}'")
    if task == "SEQ_CLS" and not whole & {*HEADS}:
        raise ValueError(
            "with SEQ_CLS, PEFT saves the head, and no module 'classifier' or 'score' trains in "
            "full here: leave task_type out"
        )
    saved = whole | {*HEADS} if task == "SEQ_CLS" else whole
    for name in sorted(adapted):
        if one := next((each for each in saved if f".{each}." in f".{name}."), None):
            raise ValueError(f"PEFT would not adapt '{name}', for it is in '{one}', saved whole")


def check_wrapped(adapted: Collection[str], names: Names) -> None:
    """Raise a ValueError for an adapter that would do nothing in PEFT."""
    for module in adapted:
        if module in names.unwrapped:
            raise ValueError(
                f"an adapter of '{module}' does nothing in PEFT, whose model reads the weight past "
                "it: merge the weights instead"
            )
