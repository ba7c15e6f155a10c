"""Checkpoints of microsoft/LoRA, loralib running: what one side writes, the other computes."""

import functools

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
loralib = pytest.importorskip("loralib")
from peft_folders import MODELS, Pair, moved  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By name of a family."""

    @functools.cache
    def make(name):
        return Pair(MODELS[name], tmp_path_factory.mktemp(name))

    return make


def with_layers(model, chosen):
    """A torch model with loralib's layers in place of its own.

    Args:
      chosen: by the end of a module's name, the class and its arguments beside the sizes.
    """
    for name, old in list(model.named_modules()):
        for end, (kind, options) in chosen.items():
            if f".{name}".endswith(f".{end}"):
                weight = old.weight.shape
                sizes = (
                    weight if options.get("fan_in_fan_out") or kind == "Embedding" else weight[::-1]
                )
                new = getattr(loralib, kind)(*sizes, **options).double()
                new.load_state_dict(old.state_dict(), strict=False)
                model.set_submodule(name, new)
    return model


def randomly(model, trains):
    """Move what `trains` allows by name away from its start."""
    random = np.random.RandomState(0)
    for name, parameter in model.named_parameters():
        if trains(name):
            parameter.data += 0.3 * torch.tensor(random.standard_normal(parameter.shape))
    return model


def merged(*enable_lora, r=2, **options):
    parts = {"enable_lora": list(enable_lora), "fan_in_fan_out": True}
    return "MergedLinear", {"r": r, "lora_alpha": 5, **parts, **options}


PAPER = (True, False, True)
LINEAR = ("Linear", {"r": 3, "lora_alpha": 5})
CONV1D = ("Linear", {"r": 3, "lora_alpha": 5, "fan_in_fan_out": True})
EMBEDDING = ("Embedding", {"r": 2, "lora_alpha": 5})
# a model, loralib's layers in it, what `lora_state_dict` takes of the biases, and enable_lora
THEIRS = {
    "the paper's RoBERTa": ("roberta", {"query": LINEAR, "value": LINEAR}, "none", None),
    "unmerged": (
        "bert",
        {"query": ("Linear", {"r": 1, "lora_alpha": 7, "merge_weights": False})},
        "none",
        None,
    ),
    "biases of its layers": ("bert", {"key": LINEAR, "output.dense": LINEAR}, "lora_only", None),
    "all biases": ("bert", {"query": LINEAR}, "all", None),
    "embedding": ("bert", {"word_embeddings": EMBEDDING, "value": LINEAR}, "none", None),
    "the paper's GPT-2": ("gpt2", {"c_attn": merged(*PAPER)}, "none", PAPER),
    "one part": ("gpt2", {"c_attn": merged(False, True, False)}, "none", (False, True, False)),
    "all parts": ("gpt2", {"c_attn": merged(True, True, True)}, "all", None),
    "joined": ("gpt2", {"c_attn": CONV1D, "c_fc": CONV1D, "mlp.c_proj": CONV1D}, "lora_only", None),
}  # fmt: skip


@pytest.mark.parametrize("case", THEIRS)
def test_we_compute_what_loralib_writes(case, made, tmp_path, x64):
    """Read from torch's pickle, written by us, and read by loralib."""
    family, layers, bias, enable_lora = THEIRS[case]
    pair = made(family)
    trained = with_layers(pair.fresh(), layers)
    loralib.mark_only_lora_as_trainable(trained, bias)
    trains = {name for name, each in trained.named_parameters() if each.requires_grad}
    # RoBERTa's scripts train the head, too, and save it beside the adapter
    head = {n for n, _ in trained.named_parameters() if "classifier" in n and family == "roberta"}
    randomly(trained, lambda name: name in trains | head)
    state = loralib.lora_state_dict(trained, bias)
    state |= {name: trained.state_dict()[name] for name in head}
    torch.save({"model_state_dict": state} if family == "gpt2" else state, tmp_path / "theirs.pt")
    alpha = next(iter(layers.values()))[1]["lora_alpha"]
    options = {"alpha": alpha, "enable_lora": enable_lora}
    loaded = load(tmp_path / "theirs.pt", pair, **options)
    expected = pair.theirs(trained)
    assert_close(pair.outputs(*loaded[:3]), expected, pair)
    if case != "joined":  # whose A is one for all parts, and is here in each
        for kind, inside in (("adapters", True), ("params", False)):
            size = sum(x.size for x in jax.tree.leaves(loaded.trainable[kind]))
            assert size == sum(x.numel() for n, x in state.items() if ("lora_" in n) == inside)
    save_file({f"module.{n}": x.contiguous() for n, x in state.items()}, tmp_path / "p.safetensors")
    parallel = load(tmp_path / "p.safetensors", pair, **options)
    np.testing.assert_array_equal(*(pair.outputs(*each[:3]) for each in (loaded, parallel)))

    written = lj.save_loralib(tmp_path / "ours.safetensors", *loaded[1:3], pair.names)
    assert_close(by_loralib(written, pair), expected, pair)


def load(file, pair, **options):
    given = (variants.from_peft, pair.names, pair.forward, pair.params, *pair.inputs)
    return lj.load_loralib(file, *given, **options)


def assert_close(got, expected, pair):
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - pair.plain()).max() > 1e-3  # the adapter matters


def by_loralib(written, pair):
    """What a model of the layers that were said computes with a file."""
    model = with_layers(pair.fresh(), written.layers)
    missing, unexpected = model.load_state_dict(load_file(written.file), strict=False)
    assert not unexpected and not [name for name in missing if "lora_" in name]
    return pair.theirs(model)


LORA = {"rank": 2, "alpha": 5.0}
# a model, its targets, and what of it trains in full
OURS = {
    "lora": ("bert", {"(query|up)/kernel": ("lora", LORA)}, ()),
    "pissa, a head": ("roberta", {"(query|up)/kernel": ("pissa", LORA)}, "(classifier|pooler)/.*"),
    "scales that differ": (
        "bert",
        {"query/kernel": ("rslora", {"rank": 3}), "down/kernel": ("lora", LORA)},
        (),
    ),
    "ranks that differ": (
        "gpt2",
        {"query/kernel": ("lora", {"rank": 3, "alpha": 7.5}), "value/kernel": ("lora", LORA)},
        "(query|norm)/bias",
    ),
    "a layer without one part": (
        "gpt2",
        {
            lj.layers("query/kernel", 0): ("lora", LORA),
            lj.layers("(value|up)/kernel", 1): ("lora", LORA),
        },
        (),
    ),
    "embedding": ("bert", {"word/embedding": ("lora", LORA)}, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS)
def test_loralib_computes_what_we_write(case, made, tmp_path, x64):
    family, targets, full = OURS[case]
    pair = made(family)
    chosen = {where: variants.make(name, **fields) for where, (name, fields) in targets.items()}
    adapted = lj.adapt(pair.forward, targets=chosen, also_train=full)
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    written = lj.save_loralib(tmp_path / "out.safetensors", trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(by_loralib(written, pair), expected, pair)
    again = load(written.file, pair)  # its header says alpha, and which parts
    assert_close(pair.outputs(*again[:3]), expected, pair)
