"""PEFT folders without PEFT: what is in them, by PEFT's formula in NumPy, and hostile ones."""

import contextlib
import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.contract.toys import noisy
from lora_jax.interchange.peft_config import joined

NAMES = lj.names_from_patterns(
    {
        "layers/query/kernel": "encoder.{layer}.self.query",
        r"(\w+)/kernel": "top.{0}",
    }
)
X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def forward(params, x):
    for layer in range(3):
        query = jax.tree.map(lambda leaf, n=layer: leaf[n], params["layers"]["query"])
        x = jnp.tanh(x @ query["kernel"] + query["bias"][None])
    return x @ params["head"]["kernel"]


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    shapes = {
        "layers": {"query": {"kernel": (3, 6, 6), "bias": (3, 6)}},
        "head": {"kernel": (6, 2)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def trained(targets, params, **options):
    adapted = lj.adapt(forward, targets=targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), params, X)
    return adapted, noisy(trainable, scale=1.0), frozen


@pytest.fixture(scope="module")
def written(params, tmp_path_factory):
    """Other ranks and scales in each layer, one of none, one above the width; a trained head."""
    folder = tmp_path_factory.mktemp("adapter")
    targets = {
        lj.layers("query/kernel", 0): variants.make("lora", rank=1, alpha=3.0),
        lj.layers("query/kernel", 2): variants.make("lora", rank=7, alpha=3.0),
    }
    adapted, trainable, frozen = trained(targets, params, also_train="head/kernel")
    lj.save_peft(folder, trainable, frozen, NAMES, base_model="me/base")
    return folder, np.asarray(adapted.apply(trainable, frozen, X))


@pytest.mark.parametrize(("rank", "alpha"), [(3, 16.0), (6, 16.0), (7, 3.0), (4, 0.5)])
def test_alpha_is_written_as_it_was_given(params, tmp_path, rank, alpha):
    """Though the scale is rounded to float32."""
    variant = variants.make("lora", rank=rank, alpha=alpha)
    _, trainable, frozen = trained({"query/kernel": variant}, params)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    assert json.dumps(read(tmp_path)[0]["lora_alpha"]) == f"{alpha:g}"


def by_pefts_formula(folder, params):
    """What PEFT's LoRA computes: W x + (alpha / r) B A x, with ranks by pattern."""
    config, tensors = read(folder)
    x = X
    for layer in range(3):
        w, bias = (np.asarray(params["layers"]["query"][n][layer]) for n in ("kernel", "bias"))
        module = f"encoder.{layer}.self.query"
        y = x @ w + bias
        if module in config["target_modules"]:
            values = [config["r"], config["lora_alpha"]]
            for n, pattern in enumerate(("rank_pattern", "alpha_pattern")):
                for key, value in config[pattern].items():
                    if re.match(rf"(.*\.)?({key})$", module):
                        values[n] = value
            a = tensors[f"base_model.model.{module}.lora_A.weight"]
            b = tensors[f"base_model.model.{module}.lora_B.weight"]
            assert a.shape == (values[0], 6) and b.shape == (6, values[0])
            y = y + values[1] / values[0] * (x @ a.T @ b.T)
        x = np.tanh(y)
    head = tensors.get("base_model.model.top.head.weight", np.asarray(params["head"]["kernel"]).T)
    return x @ head.T


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def load(folder, params):
    return lj.load_peft(folder, variants.from_peft, NAMES, forward, params, X)


def test_what_is_written(written, params):
    folder, expected = written
    np.testing.assert_allclose(by_pefts_formula(folder, params), expected, atol=1e-5)
    config, tensors = read(folder)
    assert config["target_modules"] == ["encoder.0.self.query", "encoder.2.self.query"]
    assert config["modules_to_save"] == ["top.head"]
    assert config["base_model_name_or_path"] == "me/base"
    assert config["loftq_config"] == {} and "use_rslora" not in config
    assert len(tensors) == 5


def test_what_is_read(written, params):
    folder, expected = written
    loaded = load(folder, params)
    np.testing.assert_allclose(loaded.adapted.apply(*loaded[1:3], X), expected, atol=1e-6)
    again = folder / "again"
    lj.save_peft(again, *loaded[1:3], NAMES)
    tensors = read(folder)[1]
    for name, tensor in read(again)[1].items():  # b goes through a scale, and back
        np.testing.assert_allclose(tensor, tensors[name], rtol=3e-7, atol=0, err_msg=name)


@pytest.mark.parametrize(
    ("head", "query", "task", "said"),
    [
        ("classifier", "b.{layer}.query", "SEQ_CLS", None),
        ("top.classifier", "b.{layer}.query", None, None),
        ("classifier.out_proj", "b.{layer}.query", "SEQ_CLS", None),
        ("top", "b.{layer}.query", "SEQ_CLS", "no module 'classifier' or 'score'"),
        ("classifier", "score.{layer}", "SEQ_CLS", "would not adapt 'score.1', for it is in 'sco"),
        ("top", "top.{layer}", None, "would not adapt 'top.1', for it is in 'top', saved whole"),
        ("query", "b.{layer}.query", None, "would not adapt 'b.1.query', for it is in 'query'"),
    ],
)
def test_modules_that_peft_would_take_for_others(head, query, task, said, params, tmp_path):
    names = lj.names_from_patterns({"query/kernel": query, "head/kernel": head})
    targets = {lj.layers("query/kernel", 1): variants.make("lora", rank=1)}
    _, trainable, frozen = trained(targets, params, also_train="head/kernel")
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        lj.save_peft(tmp_path, trainable, frozen, names, task_type=task)


def test_numbers_too_large_for_the_dtype(params, tmp_path):
    _, trainable, frozen = trained({"head/kernel": variants.make("lora", rank=1)}, params)
    lj.save_peft(tmp_path, trainable, frozen, NAMES, dtype=jnp.float16)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # others may read both
    large = jax.tree.map(lambda x: x * 1e6, trainable)
    with pytest.raises(ValueError, match=r"lora_A.weight' holds .*e\+06, which is too large for"):
        lj.save_peft(tmp_path, large, frozen, NAMES, dtype=jnp.float16)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_lists_are_joined_where_they_name_the_module():
    lists = {"a": {"feedforward_modules": []}, "b": {"feedforward_modules": ["{module}"]}}
    assert joined(lists) == {"feedforward_modules": ["b"]}


@pytest.mark.parametrize("method", ["pissa", "lora_xs"])
def test_starts_from_the_weight_are_lora_on_the_untouched_base(method, params, tmp_path):
    adapted, trainable, frozen = trained({"query/kernel": variants.make(method, rank=2)}, params)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    config, _ = read(tmp_path)
    assert config["r"] == (4 if method == "pissa" else 2) and config["init_lora_weights"] is True
    expected = by_numpy(adapted.apply)(trainable, frozen, X)
    np.testing.assert_allclose(by_pefts_formula(tmp_path, params), expected, atol=1e-5)


bank = functools.partial(variants.make, "vblora", rank=1, num_vectors=6, vector_length=2)
LORA_AND_DORA = {lj.layers("query/kernel", 0): variants.make("lora", rank=1)}
LORA_AND_DORA["head/kernel"] = variants.make("dora", rank=1)
NO_BIASES = dataclasses.replace(
    NAMES, place=lambda path, layer: None if "bias" in path else NAMES.place(path, layer)
)
NOT_WRITTEN = [
    (LORA_AND_DORA, NAMES, "PEFT has one use_dora for all modules"),
    ({"query/kernel": variants.make("ia3")}, NAMES, "PEFT also changes the bias of its layer"),
    ({"query/kernel": variants.make("ia3")}, NO_BIASES, "PEFT also changes the bias of its layer"),
    (
        {"head/kernel": variants.make("fourierft", frequencies=3)},
        NAMES,
        "PEFT cannot compute FourierFT of this matrix as it is",
    ),
    (
        {"head/kernel": variants.make("lora", rank=1)},
        lj.names_from_patterns({"b": "c"}),
        "'head/kernel' has no torch name",
    ),
    # Two groups of one method have their own arrays here.
    (
        {"query/kernel": bank(), "head/kernel": bank(learning_rate_ratio=2.0)},
        NAMES,
        "PEFT has one .*bank.* for all modules",
    ),
    (
        {"head/kernel": variants.make("lora", rank=1)},
        lj.names_from_patterns({"query/kernel": "b.{layer}.query", "head/kernel": "query"}),
        r"adapt 'b\.0\.query', too, for it ends in 'que",
    ),
]


@pytest.mark.parametrize(("targets", "names", "said"), NOT_WRITTEN)
def test_what_is_not_written(targets, names, said, params, tmp_path):
    _, trainable, frozen = trained(targets, params)
    with pytest.raises(ValueError, match=said):
        lj.save_peft(tmp_path / "out", trainable, frozen, names)
    assert not (tmp_path / "out").exists()


def test_a_path_that_another_ends_in(tmp_path):
    params = {"up": {"kernel": jnp.ones((4, 2))}, "block": {"up": {"kernel": jnp.ones((6, 4))}}}
    names = lj.names_from_patterns({"block/up/kernel": "block.first", "up/kernel": "second"})

    def apply(params, x):
        return x @ params["block"]["up"]["kernel"] @ params["up"]["kernel"]

    adapted = lj.adapt(apply, variants.make("lora", rank=1), "(?<!/)up/kernel")
    lj.save_peft(tmp_path, *adapted.init(jax.random.key(0), params, X), names)
    loaded = lj.load_peft(tmp_path, variants.from_peft, names, apply, params, X)
    assert list(loaded.trainable["adapters"]) == ["up/kernel"]


@pytest.mark.parametrize(
    ("patterns", "path", "layer", "place"),
    [
        (None, "model/layers/query/bias", 2, ("encoder.2.self.query.bias", False, None)),
        (None, "head/kernel", 0, ("top.head.weight", True, None)),
        (None, "other", 0, None),
        ({"head/kernel": "head.weight"}, "head/kernel", 0, ("head.weight", False, None)),
        ({"head/kernel": "head.weight"}, "head/bias", 0, ("head.bias", False, None)),
    ],
)
def test_names_of_a_users_own_model(patterns, path, layer, place):
    names = lj.names_from_patterns(patterns) if patterns else NAMES
    assert names.place(path, layer) == place
    assert names.stacked(path) == ("query" in path)


def test_a_field_that_a_pattern_does_not_give():
    with pytest.raises(ValueError, match="has a field 'number'"):
        lj.names_from_patterns({"a": "b.{number}"}).place("a", 0)


A = "base_model.model.encoder.0.self.query.lora_A.weight"
ROWS = "base_model.model.encoder.1.self.query.token_adapter.trainable_tokens_delta"
HOSTILE = [
    ({"peft_type": "XLORA"}, {}, "no variant is PEFT's 'XLORA'"),
    ({"peft_type": None}, {}, "no peft_type"),
    ({"rank_pattern": [1]}, {}, "rank_pattern must map modules to numbers, got"),
    ({"alpha_pattern": {"query": "8"}}, {}, "alpha_pattern must map modules to numbers"),
    ({"feedforward_modules": 3}, {}, "feedforward_modules must be names, got 3"),
    ({"target_modules": {"query": 1}}, {}, "target_modules must be names, got {'query': 1}"),
    ({"target_modules": [None]}, {}, r"target_modules must be names, got \[None\]"),
    ({"target_modules": "["}, {}, "target_modules: '\\[' is not a pattern: unterminated"),
    ({"target_modules": "(" * 5000}, {}, "is not a pattern: "),
    ({"target_modules": "x" * 10**6}, {}, "target_modules has 1,000,000 characters, at most"),
    ({"target_modules": ["top"]}, {}, "target_modules does not name 'encoder.[02].self.query', w"),
    ({"modules_to_save": 7}, {}, "modules_to_save must be names, got 7"),
    ({"layers_to_transform": "x"}, {}, "layers_to_transform must be whole numbers, got 'x'"),
    ({"bias": "foo"}, {}, "bias must be 'none', 'all', or such as 'lora_only', got 'foo'"),
    ({}, {A.replace("lora_A.weight", "bias"): np.zeros(6)}, "bias is 'none', and there is a tens"),
    ({"r": "4"}, {}, "r must be of type int, got '4'"),
    ({"r": 2, "rank_pattern": {}}, {}, "1 rows, and the config says r=2"),
    ({"r": 10**9, "rank_pattern": {}}, {}, "1 rows, and the config says r=1000000000"),
    ({"target_parameters": [1]}, {}, r"target_parameters must be names, got \[1\]"),
    ({"trainable_token_indices": [1]}, {}, "names tokens, and no tensor has their rows"),
    ({"trainable_token_indices": 1}, {ROWS: np.zeros((1, 6))}, "has no list of tokens for 'enco"),
    ({"use_qalora": True}, {}, "LORA with use_qalora=True is not known here"),
    ({"init_lora_weights": "corda"}, {}, "init_lora_weights='corda' replaces the base"),
    ({"lora_alpha": 10**400}, {}, "LORA: lora_alpha is too large for a float"),
    ({"r": 10**400, "rank_pattern": {}}, {}, "rank must be at most 2,147,483,647"),
    ({"target_modules": ["query"]}, {}, "names 'encoder.1.self.query', which has no tensor"),
    (
        {"target_modules": r".*\.0\.self\.query"},
        {},
        "config.json: target_modules does not name 'encoder.2.self.query', which has tensors",
    ),
    (
        {"target_modules": ["query"], "exclude_modules": ["2.self.query"]},
        {},
        "exclude_modules leaves out 'encoder.2.self.query', which has tensors",
    ),
    (
        {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": "encoder"},
        {},
        "layers_to_transform leaves out 'encoder.2.self.query', which has tensors",
    ),
    ({"rank_pattern": {"(.+)+!": 2}}, {}, "may take too long"),
    ({"rank_pattern": {"(.|.)" * 6 + "!": 2}}, {}, "may take too long"),
    ({"feedforward_modules": r"(?x:(.+) +!)"}, {}, "may take too long"),
    ({"feedforward_modules": "a{99999999999999999999}"}, {}, "is not a pattern"),
    ({"rank_pattern": {"(": 2}}, {}, "'.*' is not a pattern"),
    ({}, {A: np.zeros((1, 7), np.float32)}, r"\(7, 7\).*ask for \(7, 6\)"),
    ({}, {A: np.full((1, 6), np.nan, np.float32)}, "holds NaN or an infinity"),
    ({}, {A: np.full((1, 6), 1e300)}, "a number is too large for float32"),
    ({}, {A: np.zeros((1, 6), np.int8)}, "^[^:]*model.safetensors: tensor '.*' is I8"),
    ({}, {A.replace("_A", "_C"): np.zeros(3, np.float32)}, "lora_C.weight' is not one of"),
    ({}, {A.replace("query", "key"): np.zeros(3, np.float32)}, "of 'me/base': tensor '.*' belongs"),
    ({}, {"base_model.other": np.zeros(3, np.float32)}, "'base_model.other' belongs to no module"),
    ({}, {"base_model.model.top.head.weight": np.zeros((3, 6), np.float32)}, r"\(6, 3\)"),
]


@pytest.mark.parametrize(("config", "tensors", "said"), HOSTILE, ids=[h[2] for h in HOSTILE])
def test_folders_that_do_not_fit(config, tensors, said, written, params, tmp_path):
    whole, found = read(written[0])
    (tmp_path / "adapter_config.json").write_text(json.dumps({**whole, **config}))
    save_file({**found, **tensors}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path, params)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


OTHER = "is not the 'layers/query/kernel' of these params"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: x, None),
        (lambda x: x.astype(np.float16), None),
        (lambda x: x + 1, OTHER),
        (lambda x: np.ascontiguousarray(x[:5]), OTHER),
    ],
)
def test_the_bases_own_weight_in_a_file(made, said, written, params, tmp_path):
    config, found = read(written[0])
    copy = made(np.asarray(params["layers"]["query"]["kernel"][0]).T.copy())
    name, file = A.replace("lora_A", "base_layer"), tmp_path / "adapter_model.safetensors"
    save_file({**found, name: copy}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        loaded = load(tmp_path, params)
        np.testing.assert_allclose(loaded.adapted.apply(*loaded[1:3], X), written[1], atol=1e-6)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (2**32, "4294967296, outside of"),
        (-1, "-1, outside of"),
        (0.5, "not integers"),
        (2, "2, outside of"),  # the matrix has two outputs
    ],
)
def test_places_that_a_matrix_does_not_have(place, said, params, tmp_path):
    _, trainable, frozen = trained({"head/kernel": variants.make("shira", rank=1)}, params)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    _, found = read(tmp_path)
    name = "base_model.model.top.head.shira_indices"
    places = found[name].astype(np.asarray(place).dtype)
    places[0, 0] = place
    save_file({**found, name: places}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*{said}"):
        load(tmp_path, params)


def test_places_of_one_layer_of_several(params, tmp_path):
    targets = {lj.layers("query/kernel", 1): variants.make("shira", rank=1)}
    adapted, trainable, frozen = trained(targets, params)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    loaded, expected = load(tmp_path, params), by_numpy(adapted.apply)(trainable, frozen, X)
    np.testing.assert_allclose(loaded.adapted.apply(*loaded[1:3], X), expected, atol=1e-6)


def test_files_that_are_none(written, params, tmp_path):
    config, weights = (
        tmp_path / f"adapter_{name}" for name in ("config.json", "model.safetensors")
    )
    inner = tmp_path / "other"
    inner.mkdir()
    steps = [
        (inner / "none", "", FileNotFoundError, "adapter_config"),
        (inner / config.name, "{}", FileNotFoundError, f"no such file; adapters are in {inner}$"),
        (config, json.dumps(read(written[0])[0]), FileNotFoundError, "adapter_model"),
        (weights, "pickled", ValueError, "corrupt or truncated"),
        (config, '{"peft_type": "LORA", "r": NaN}', ValueError, "NaN is not a number in JSON"),
    ]
    for path, text, kind, said in steps:
        path.write_text(text)
        with pytest.raises(kind, match=said):
            load(tmp_path, params)


def test_a_bias_that_trains_in_layers_without_an_adapter(params, tmp_path):
    """Those layers are saved whole, and their weights must be the base's."""
    targets = {lj.layers("query/kernel", 0): variants.make("lora", rank=1)}
    adapted, trainable, frozen = trained(targets, params, also_train="query/bias")
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    loaded, expected = load(tmp_path, params), by_numpy(adapted.apply)(trainable, frozen, X)
    np.testing.assert_allclose(loaded.adapted.apply(*loaded[1:3], X), expected, atol=1e-6)
    tensors = read(tmp_path)[1]
    tensors["base_model.model.encoder.1.self.query.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"1.self.query.weight' is not .*: read the merged model"):
        load(tmp_path, params)


def test_an_adapter_of_a_quantised_base(tmp_path):
    """DeLoRA keeps the norms of the weight, which are those of what is stored."""
    random, names = np.random.default_rng(0), lj.names_from_patterns({"w/kernel": "w"})
    params = {"w": {"kernel": jnp.asarray(random.standard_normal((64, 8)), jnp.float32)}}
    x = jnp.asarray(random.standard_normal((3, 64)), jnp.float32)

    def forward(params, x):
        return x @ params["w"]["kernel"]

    storage = {"w/kernel": lj.NF4()}
    adapted = lj.adapt(forward, variants.make("delora", rank=2), quantize=storage)
    trainable, frozen = adapted.init(jax.random.key(0), params, x)
    trainable = jax.tree.map(lambda leaf: leaf + 0.5, trainable)
    lj.save_peft(tmp_path, trainable, frozen, names)
    expected = by_numpy(adapted.apply)(trainable, frozen, x)

    def outputs(**given):
        read = lj.load_peft(tmp_path, variants.from_peft, names, forward, params, x, **given)
        return by_numpy(read.adapted.apply)(read.trainable, read.frozen, x)

    np.testing.assert_allclose(outputs(quantize=storage), expected, rtol=1e-6)
    assert np.abs(outputs() - expected).max() > 0.1


ROBERTA = lj.names_from_patterns(
    {
        "up/kernel": "roberta.up",
        "pooler/kernel": "classifier.dense",
        "classifier/kernel": "classifier.out_proj",
    }
)


@pytest.mark.parametrize("also_train", ["(pooler|classifier)/.*", "classifier/.*"])
def test_a_head_of_two_layers(also_train, tmp_path):
    """With SEQ_CLS, PEFT saves it whole, as one module; half of one is refused."""
    layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    params = dict.fromkeys(("up", "pooler", "classifier"), layer)

    def forward(params, x):
        for name in ("up", "pooler", "classifier"):
            x = x @ params[name]["kernel"] + params[name]["bias"][None]
        return x

    lora = variants.make("lora", rank=1)
    adapted = lj.adapt(forward, lora, "up/kernel", also_train=also_train)
    begun = adapted.init(jax.random.key(0), params, jnp.ones((1, 4)))
    if "pooler" not in also_train:
        said = "with SEQ_CLS, PEFT saves 'classifier' whole, and 'classifier.dense' does not train"
        with pytest.raises(ValueError, match=said):
            lj.save_peft(tmp_path, *begun, ROBERTA, task_type="SEQ_CLS")
        assert not any(tmp_path.iterdir())
        return
    lj.save_peft(tmp_path, *begun, ROBERTA, task_type="SEQ_CLS")
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["classifier"]
    head = {f"{part}.{leaf}" for part in ("dense", "out_proj") for leaf in ("weight", "bias")}
    assert {f"base_model.model.classifier.{each}" for each in head} <= tensors.keys()
