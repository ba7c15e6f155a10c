"""PEFT folders that are read, of any version and by one reader of many, and what fits no model.

Folders of every method whose tensors or numbers do not fit are refused in one line, at no cost.
"""

import dataclasses
import functools
import json
import shutil
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import peft_net
import pytest
from make_fixtures.peft_versions import CASES, FOLDER
from safetensors.numpy import load_file, save_file
from support import stored_adapters as stored

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.interchange import load_peft

STORED_NAMES = lj.names_from_patterns({"up/kernel": "up", "down/kernel": "down"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two of one structure, of another scale, of another rank, and with a weight in full."""
    root = tmp_path_factory.mktemp("folders")
    starts = [stored.begun(), stored.begun(), stored.begun(alpha=5.0), stored.begun(rank=3)]
    starts.append(stored.begun(also_train="down/kernel"))
    for number, start in enumerate(starts):
        lj.save_peft(root / str(number), *stored.numbered(start, number), STORED_NAMES)
    return [root / str(number) for number in range(len(starts))]


@pytest.mark.parametrize("quantize", [None, {"up/kernel": lj.Int8()}])
def test_each_folder_is_read_as_by_itself(folders, quantize):
    given = variants.from_peft, STORED_NAMES, stored.forward, stored.PARAMS, stored.X
    reader = lj.PeftReader(*given, quantize=quantize)
    read = [reader(folder) for folder in (*folders, folders[0])]
    for folder, each in zip((*folders, folders[0]), read, strict=True):
        alone = lj.load_peft(folder, *given, quantize=quantize)
        assert each.adapted == alone.adapted and each.config == alone.config
        chex.assert_trees_all_equal(each[1:3], alone[1:3])
    jax.tree.map(lambda one, other: one is other or pytest.fail(), read[0][2].base, read[1][2].base)


def test_a_reader_keeps_few_structures(tmp_path, monkeypatch):
    """Each has copies of what trains in full. The one not used for longest is traced again."""
    monkeypatch.setattr(load_peft, "MOST_BEGUN", 3)
    traced = []

    def forward(params, x):
        traced.append(None)
        return stored.forward(params, x)

    reader = lj.PeftReader(variants.from_peft, STORED_NAMES, forward, stored.PARAMS, stored.X)
    counts = []
    for rank in (1, 2, 3, 1, 4, 3, 1, 4, 2):
        if not (tmp_path / str(rank)).exists():
            lj.save_peft(tmp_path / str(rank), *stored.begun(rank=rank), STORED_NAMES)
        before = len(traced)
        reader(tmp_path / str(rank))
        counts.append(len(traced) > before)
    assert counts == [True, True, True, False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: np.full_like(x, np.nan), "holds NaN or an infinity"),
        (lambda x: x[:1], "factors have 1 rows, and the config says r=2"),
    ],
)
def test_what_is_wrong_is_said_of_a_later_folder_too(made, said, folders, tmp_path):
    reader = lj.PeftReader(
        variants.from_peft, STORED_NAMES, stored.forward, stored.PARAMS, stored.X
    )
    reader(folders[0])
    shutil.copy(folders[0] / "adapter_config.json", tmp_path)
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: made(tensors[name])}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=said):
        reader(tmp_path)


NAMES = lj.names_from_patterns({r"(up|down)/kernel": "{0}"})
PARAMS = {
    "up": {"kernel": jnp.ones((8, 12)), "bias": jnp.zeros(12)},
    "down": {"kernel": jnp.ones((12, 4)), "bias": jnp.zeros(4)},
}
X = np.ones((2, 8), np.float32)


def forward(params, x):
    for each in (params["up"], params["down"]):
        x = x @ each["kernel"] + each["bias"][None]
    return x


def load(folder, config, shapes, names=NAMES, apply=forward, params=PARAMS, others=()):
    """`load_peft` of tensors of ones, whose names are given without `base_model.model.`."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{name}": np.ones(s, np.float32) for name, s in shapes.items()}
    save_file({**tensors, **dict(others)}, folder / "adapter_model.safetensors")
    return lj.load_peft(folder, variants.from_peft, names, apply, params, X)


def test_an_adapter_that_does_nothing_in_peft(tmp_path):
    """DeBERTa's table of distances is such a module (tests/parity)."""
    names = dataclasses.replace(NAMES, unwrapped=frozenset({"up"}))
    said = "adapter of 'up' does nothing in PEFT"
    config = {"peft_type": "LORA", "r": 2}
    with pytest.raises(ValueError, match=said):
        load(tmp_path, config, {"up.lora_A.weight": (2, 8), "up.lora_B.weight": (12, 2)}, names)
    adapted = lj.adapt(forward, variants.make("lora", rank=1), "up/kernel")
    with pytest.raises(ValueError, match=said):
        lj.save_peft(tmp_path / "ours", *adapted.init(jax.random.key(0), PARAMS, X), names)


def test_a_huge_rank_of_adalora_takes_no_memory(tmp_path):
    config = {"peft_type": "ADALORA", "init_r": 10**7, "total_step": 10}
    shapes = {"up.lora_A": (2, 8), "up.lora_B": (12, 2), "up.lora_E": (2, 1)}
    tracemalloc.start()
    with pytest.raises(ValueError, match="10000000 by rank_pattern and init_r"):
        load(tmp_path, config, shapes)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
PAIR = {"up.lora_A.weight": (2, 8), "up.lora_B.weight": (12, 2)}
ADALORA = {"up.lora_A": (2, 8), "up.lora_B": (12, 2), "up.lora_E": (2, 1)}
TWO_OF_ADALORA = {**ADALORA, "down.lora_A": (2, 12), "down.lora_B": (4, 2), "down.lora_E": (2, 1)}
SCHEDULE = {"peft_type": "ADALORA", "init_r": 2, "total_step": 10}
BIASED = {**LORA, "lora_bias": True}
FOURIER = {"peft_type": "FOURIERFT", "n_frequency": 2, "scaling": 1e39}
LARGE = r"up/kernel.*: a number is too large for float32"
MISFITS = [
    ({**LORA, "lora_alpha": 1e39}, PAIR, LARGE),
    ({**LORA, "alpha_pattern": {"up": 1e308}}, PAIR, LARGE),
    (FOURIER, {"up.fourierft_spectrum": (2,)}, LARGE),
    (BIASED, {**PAIR, "up.lora_B.bias": ()}, r"lora_B.bias: the file has .* ask for \(12,\)"),
    (BIASED, {**PAIR, "up.lora_B.bias": (1,)}, r"lora_B.bias: the file has .* ask for \(12,\)"),
    (
        {**SCHEDULE, "init_r": 1_999_999_999},
        TWO_OF_ADALORA,
        r"rank=1999999999 \(2 matrices\) is a budget of 3,999,999,998",
    ),
    (
        {**SCHEDULE, "init_r": 10**10},
        TWO_OF_ADALORA,
        "ADALORA: init_r must be at most 2,147,483,647, got 10000000000",
    ),
    (
        {**SCHEDULE, "deltaT": 10**30},
        TWO_OF_ADALORA,
        "ADALORA: deltaT must be at most 2,147,483,647, got 10000",
    ),
    (LORA, {**PAIR, "up.lora_B.weight": ()}, r"'up' .*lora_B.weight': \(\)"),
    (LORA, {**PAIR, "up.lora_B.weight": (12, 2, 1)}, "'up' .*: factors are matrices"),
    (LORA, {**PAIR, "up.lora_A.weight": (3, 8)}, "'up' .* 3 rows, and the config says r=2"),
    (LORA, {**PAIR, "up.lora_C.weight": (3,)}, "'up' .*'lora_C.weight' is not one of"),
    (LORA, {**PAIR, "down.bias": ()}, r"down/bias: the file has \(\)"),
    ({"peft_type": "ADALORA", "init_r": 2, "total_step": 10}, {**ADALORA, "up.lora_A": ()}, "'up'"),
    (
        {"peft_type": "ADALORA", "init_r": 1, "total_step": 10},
        {"up.lora_A": (1,), "up.lora_B": (12, 1), "up.lora_E": (1, 1)},
        "'up' .*: factors are matrices",
    ),
    (
        {"peft_type": "GRALORA", "r": 2, "gralora_k": 2},
        {"up.gralora_A": (64,), "up.gralora_B": (2, 1, 6)},
        "'up' .*: blocks of factors have three axes",
    ),
    ({"peft_type": "BOFT"}, {"up.boft_R": (1,), "up.boft_s": (12, 1)}, r"'up' .*boft_R': \(1,\)"),
    (
        {"peft_type": "BOFT"},
        {"up.boft_R": (2, 3, 4, 5, 6), "up.boft_s": (12, 1)},
        "'up' .* not fit",
    ),
    (
        {"peft_type": "IA3", "feedforward_modules": []},
        {"up.ia3_l": (2, 6)},
        "'up' .*: a vector has one axis that is longer than 1",
    ),
]


@pytest.mark.parametrize(("config", "shapes", "said"), MISFITS)
def test_tensors_and_numbers_that_do_not_fit(config, shapes, said, tmp_path):
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path, config, shapes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("up.lora_A.weight", (2, 8), np.int32),
        ("up.lora_B.weight", (12, 2), np.int64),
        ("down.weight", (4, 12), np.int64),
    ],
)
def test_numbers_are_no_integers(name, shape, dtype, tmp_path):
    """Those of indices are: SHiRA's have a test with its folders."""
    whole = f"base_model.model.{name}"
    said = f"tensor '{whole}' is {np.dtype(dtype)}, and an adapter's numbers are"
    with pytest.raises(ValueError, match=said):
        load(tmp_path, LORA, PAIR, others={whole: np.ones(shape, dtype)})


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        ("up.lora_A.weight", "base_model.model.up.lora_A.weight", (2, 8)),
        ("base_model.model.down.weight", "base_model.model.down.modules_to_save.weight", (4, 12)),
    ],
)
def test_a_tensor_under_two_names(one, other, shape, tmp_path):
    others = {name: np.ones(shape, np.float32) for name in (one, other)}
    with pytest.raises(ValueError, match="are the same tensor") as caught:
        load(tmp_path, LORA, PAIR, others=others)
    assert f"'{one}'" in str(caught.value) and f"'{other}'" in str(caught.value)


def test_a_name_twice_in_one_header(tmp_path):
    part = '"up.lora_A.weight":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,64]}'
    header = f"{{{part % (8, 2)},{part % (2, 8)}}}".encode()
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"safetensors .*: its header .* 'up.lora_A.weight' twice"):
        lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, PARAMS, X)


LONG = "x" * 10**5
UNABRIDGED = [
    ({LONG: 1}, {}),
    ({"unknown": LONG}, {}),
    ({"r": LONG}, {}),
    ({"peft_type": LONG}, {}),
    ({"init_lora_weights": LONG}, {}),
    ({}, {f"up.{LONG}": (2,)}),
    ({"base_model_name_or_path": LONG}, {"up.lora_C": (2,)}),
]


@pytest.mark.parametrize(("config", "shapes"), UNABRIDGED, ids=range(len(UNABRIDGED)))
def test_long_names_are_not_repeated_in_full(config, shapes, tmp_path):
    with pytest.raises(
        ValueError, match=r"not known|no variant is|must be of type int|no module|not one of"
    ) as caught:
        load(tmp_path, {**LORA, **config}, {**PAIR, **shapes})
    assert len(str(caught.value)) < 1000


MIXED = [
    ("FOURIERFT", {"n_frequency": 2, "n_frequency_pattern": {"layers.1.w": 3}}, {
        "layers.0.w.fourierft_spectrum": (2,), "layers.1.w.fourierft_spectrum": (3,)
    }),
    ("DELORA", {"r": 1, "lambda_pattern": {"1.w": 3.0}}, {
        f"layers.{n}.w.delora_{name}": shape
        for n in (0, 1)
        for name, shape in {"A": (1, 8), "B": (8, 1), "lambda": (1,)}.items()
    }),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "shapes"), MIXED)
def test_layers_of_a_stack_that_no_stack_holds(kind, config, shapes, tmp_path):
    names, params = lj.names_from_patterns({"w": "layers.{layer}.w"}), {"w": jnp.ones((2, 8, 8))}

    def apply(params, x):
        return x @ params["w"][0] @ params["w"][1]

    with pytest.raises(ValueError, match=r"'w': .* cannot mix .*; merge the adapter in PEFT"):
        load(tmp_path, {"peft_type": kind, **config}, shapes, names, apply, params)


NET_NAMES = lj.names_from_patterns({r"(\w+\.(?:weight|bias))": "{0}"})


@pytest.mark.parametrize(
    ("version", "case"), [(version, case) for version, each in CASES.items() for case in each]
)
def test_outputs_are_those_of_that_version(version, case, x64):
    arrays = dict(np.load(FOLDER / "base.npz"))
    ids, params = arrays.pop("ids"), {name: jnp.asarray(x) for name, x in arrays.items()}
    loaded = lj.load_peft(
        FOLDER / version / case, variants.from_peft, NET_NAMES, peft_net.forward, params, ids
    )
    expected = np.load(FOLDER / version / "outputs.npz")[case]
    got = by_numpy(loaded.adapted.apply)(*loaded[1:3], ids)
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - functools.partial(peft_net.forward, params)(ids)).max() > 1e-3
