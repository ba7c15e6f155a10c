"""PEFT's folders of GPT-2, whose queries, keys and values are one weight there, PEFT running.

Most of PEFT's methods do not know GPT-2's Conv1D, so the same weight is also a Linear here.
"""

import functools

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.interchange.names import Names

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft_folders import MODELS, Both, Pair, moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def with_linear(pair):
    """The same model, where torch has a Linear in place of the Conv1D `c_attn`."""

    def fresh():
        model = pair.fresh()
        for block in model.transformer.h:
            conv, (inputs, outputs) = block.attn.c_attn, block.attn.c_attn.weight.shape
            block.attn.c_attn = linear = torch.nn.Linear(inputs, outputs, dtype=conv.weight.dtype)
            linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data
        return model

    def place(path, layer):
        found = pair.names.place(path, layer)
        weight = found is not None and found.name.endswith("c_attn.weight")
        return found._replace(transposed=True) if weight else found

    names = Names(place, pair.names.stacked)
    return Both(fresh, pair.forward, pair.params, names, pair.inputs)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """GPT-2 by PEFT's layer, made when it is first asked for: in float64."""

    @functools.cache
    def make():
        pair = Pair(MODELS["gpt2"], tmp_path_factory.mktemp("gpt2"))
        return {"Conv1D": pair, "Linear": with_linear(pair)}

    return make


@pytest.fixture
def both(made, x64):
    return made()


def assert_close(got, expected, base):
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - base).max() > 1e-3  # the adapter matters


# PEFT's layer, the method, and its settings; a third of the weight is (16, 16)
DIVIDED = {
    ("Conv1D", "LORA"): {"r": 2, "lora_alpha": 3},
    ("Conv1D", "LORA, DoRA"): {"r": 2, "use_dora": True},
    ("Conv1D", "LORA, bias"): {"r": 2, "lora_bias": True},
    ("Conv1D", "ADALORA"): {"init_r": 3, "target_r": 2, "total_step": 9, "tinit": 1, "tfinal": 1},
    ("Conv1D", "HIRA"): {"r": 2},
    ("Conv1D", "IA3"): {"feedforward_modules": []},
    ("Conv1D", "IA3, inputs"): {"feedforward_modules": ["c_attn"]},
    ("Conv1D", "VBLORA"): {"r": 2, "num_vectors": 6, "vector_length": 8, "topk": 3},
    ("Linear", "BOFT"): {"boft_block_size": 4, "boft_n_butterfly_factor": 1},
    ("Linear", "C3A"): {"block_size": 8},
    ("Linear", "HRA"): {"r": 4},
    ("Linear", "LOHA"): {"r": 2, "alpha": 3},
    ("Linear", "MISS"): {"r": 3},
    ("Linear", "OFT"): {"oft_block_size": 4, "use_cayley_neumann": False},
    ("Linear", "ROAD"): {"variant": "road_1", "group_size": 8},
    ("Linear", "ROAD, 2"): {"variant": "road_2", "group_size": 16},
    ("Linear", "ROAD, 4"): {"variant": "road_4", "group_size": 4},
}


@pytest.mark.parametrize(("layer", "case"), DIVIDED)
def test_thirds_of_what_peft_writes(layer, case, both, tmp_path):
    """Read, and written again for PEFT."""
    pair, kind = both[layer], case.partition(",")[0]
    config = {"peft_type": kind, "target_modules": ["c_attn"], **DIVIDED[layer, case]}
    expected = pair.written_by_peft(tmp_path / "theirs", config)
    got, loaded = pair.ours_from(tmp_path / "theirs")
    assert_close(got, expected, pair.plain())
    lj.save_peft(tmp_path / "again", *loaded[1:3], pair.names)
    assert_close(pair.loaded_by_peft(tmp_path / "again"), expected, pair.plain())


WHOLE = {
    ("Conv1D", "FOURIERFT"): {"n_frequency": 5},
    ("Conv1D", "GRALORA"): {"r": 4, "gralora_k": 2},
    ("Conv1D", "RANDLORA"): {"r": 3},
    ("Conv1D", "VERA"): {"r": 4},
    ("Linear", "DELORA"): {"r": 4},
    ("Linear", "LOKR"): {"r": 1},
    ("Linear", "SHIRA"): {"r": 1},
    ("Linear", "ROAD"): {"variant": "road_1", "group_size": 24},
}


@pytest.mark.parametrize(("layer", "kind"), WHOLE)
def test_what_has_no_thirds(layer, kind, both, tmp_path):
    config = {"peft_type": kind, "target_modules": ["c_attn"], **WHOLE[layer, kind]}
    both[layer].written_by_peft(tmp_path, config)
    said = (
        "groups of 24 do not divide 16 outputs" if kind == "ROAD" else "joins .* merge it in PEFT"
    )
    with pytest.raises(ValueError, match=rf"c_attn.*{said}"):
        both[layer].ours_from(tmp_path)


# PEFT's layer, a variant's name and its settings
OURS = {
    ("Conv1D", "adalora"): {"rank": 2, "target_rank": 1},
    ("Conv1D", "hira"): {"rank": 2},
    ("Conv1D", "ia3"): {"biases": True},
    ("Conv1D", "lora"): {"rank": 2},
    ("Linear", "c3a"): {"block_size": 4},
    ("Linear", "loha"): {"rank": 2},
    ("Linear", "miss"): {"rank": 3},
    ("Linear", "road"): {"group_size": 4, "biases": True},
}


@pytest.mark.parametrize(("layer", "method"), OURS)
def test_peft_leaves_a_third_without_an_adapter(layer, method, both, tmp_path):
    pair = both[layer]
    variant = variants.make(method, **OURS[layer, method])
    adapted = lj.adapt(pair.forward, variant, "value/kernel")
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path, trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path), expected, pair.plain())


def test_adalora_of_thirds_that_differ(both, tmp_path):
    pair = both["Conv1D"]
    targets = {
        "query/kernel": variants.make("adalora", rank=3, target_rank=2, alpha=5.0),
        "value/kernel": variants.make("adalora", rank=2, target_rank=1),
    }
    adapted = lj.adapt(pair.forward, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path, trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path), expected, pair.plain())
