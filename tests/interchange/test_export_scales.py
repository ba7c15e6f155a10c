"""Every format holds each matrix's own update, whatever the ranks, alphas and scales of others.

The updates are computed from the files by the formulas of PEFT and loralib.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import lora_jax as lj
import variants
from lora_jax.interchange.names import Names
from lora_jax.interchange.save_plain_lora import save_plain_lora
from lora_jax.models.parts.family import Place

PARAMS = {
    name: {"kernel": jax.random.normal(key, (6, 5))}
    for name, key in zip("qkv", jax.random.split(jax.random.key(1), 3), strict=True)
}
SETS = {
    "one scale": [{"rank": 2, "alpha": 3.0}] * 3,
    "one scale, other ranks": [{"rank": r, "alpha": 1.5 * r} for r in (1, 2, 4)],
    "one rank, other alphas": [{"rank": 2, "alpha": a} for a in (3.0, 5.0, 7.0)],
    "one alpha, other ranks": [{"rank": r, "alpha": 3.0} for r in (1, 4, 2)],
    "other rules": [
        {"rank": 2, "alpha": 3.0},
        {"rank": 3, "alpha": 5.0, "scale": "alpha/sqrt(rank)"},
        {"rank": 2, "alpha": 0.25, "scale": "alpha", "max_rank": 4},
    ],
    "moved starts": [
        {"rank": 1, "alpha": 3.0},
        {"rank": 2, "alpha": 5.0, "initialization": "pissa"},
        {"rank": 1, "alpha": 7.0, "initialization": "olora"},
    ],
    "no plain LoRA": [
        {"rank": 2, "alpha": 3.0},
        {"name": "adalora", "rank": 3, "target_rank": 3, "alpha": 5.0},
        {"rank": 1, "alpha": 7.0},
    ],
}


SCALES = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / rank**0.5,
    "alpha": lambda alpha, rank: alpha,
}


def product(factors):
    """A^T B, or AdaLoRA's A^T diag(e) B."""
    return (factors["a"] * factors.get("e", jnp.ones(1))[:, None]).T @ factors["b"]


def apply(params, x):
    return [x @ params[name]["kernel"] for name in "qkv"]


def names(joined):
    def place(path, layer):
        if joined:  # as GPT-2's
            return Place("c_attn.weight", False, "qkv".index(path[0]))
        return Place(f"{path[0]}_proj.weight", True, None)

    return Names(place, lambda path: False)


def from_peft(folder, joined):
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for module in ["c_attn"] if joined else [f"{n}_proj" for n in "qkv"]:
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        own = [config.get(f"{x}_pattern", {}).get(module) for x in ("alpha", "rank")]
        alpha, rank = own[0] or config["lora_alpha"], own[1] or config["r"]
        assert rank == len(a)
        found[module] = alpha / rank * (b @ a).T
    return found["c_attn"] if joined else np.concatenate([*found.values()], 1)


def from_loralib(file, joined):
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        said = opened.metadata()
    alpha, rank = float(said["lora_alpha"]), int(said["r"])
    pairs = []
    for module in ["c_attn"] if joined else [f"{n}_proj" for n in "qkv"]:
        a, b = (tensors[f"{module}.lora_{x}"] for x in "AB")
        parts = 3 if joined else 1
        pairs += zip(np.split(a, parts), np.split(b, parts), strict=True)
    assert all(len(a) == rank for a, _ in pairs)
    return np.concatenate([alpha / rank * (b @ a).T for a, b in pairs], 1)


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("chosen", SETS)
def test_each_matrix_keeps_its_own_update(chosen, joined, tmp_path):
    targets = {
        f"{name}/kernel": variants.make(**{"name": "lora", **settings})
        for name, settings in zip("qkv", SETS[chosen], strict=True)
    }
    adapted = lj.adapt(apply, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), PARAMS, jnp.ones((1, 6)))
    updates = []
    for n, settings in enumerate(SETS[chosen]):
        own, rank = trainable["adapters"][f"{'qkv'[n]}/kernel"], settings["rank"]
        before = product(own)
        for name, x in own.items():  # rows beyond the rank are zero
            moved = x[:rank] + jax.random.normal(jax.random.key(n), x[:rank].shape)
            own[name] = x.at[:rank].set(moved)
        by = SCALES[settings.get("scale", "alpha/rank")](settings["alpha"], rank)
        updates.append(by * (product(own) - before))
    wanted = np.concatenate(updates, 1)
    merged = adapted.merge(trainable, frozen)
    found = np.concatenate([merged[n]["kernel"] - PARAMS[n]["kernel"] for n in "qkv"], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    adapter = trainable, frozen, names(joined)
    save_plain_lora(tmp_path / "plain", *adapter, served=None)
    found = {"plain": from_peft(tmp_path / "plain", joined)}
    if chosen != "no plain LoRA":
        lj.save_peft(tmp_path / "peft", *adapter)
        found["peft"] = from_peft(tmp_path / "peft", joined)
    lj.save_loralib(tmp_path / "loralib.safetensors", *adapter)
    found["loralib"] = from_loralib(tmp_path / "loralib.safetensors", joined)
    for form, update in found.items():
        np.testing.assert_allclose(update, wanted, rtol=1e-4, atol=1e-4, err_msg=form)
