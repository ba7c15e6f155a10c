"""One adapter in one file: what it holds, and for what it is refused."""

import json
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

import lora_jax as lj
import variants
from lora_jax.adapters.adapter_file import require_finite
from lora_jax.contract import toys
from lora_jax.files import tree_file
from lora_jax.files.json_text import config_digest

# Toys have random trainables, as if AdaLoRA's budget had been forgotten.
pytestmark = pytest.mark.filterwarnings("ignore::lora_jax.TrainingWarning")


def toy(name, seed=4, **more):
    return toys.toy(variants.make(name, **more), "float32", seed=seed)


@pytest.mark.parametrize("name", own_code.names())
def test_a_file_makes_an_adapter_whole_whatever_key_began_it(name, tmp_path):
    """Random constants (VeRA's projections, LoRA-FA's A) come from the file, not from a new key.

    The same numbers where another run begins from it.
    """
    first, other = toy(name), toy(name, seed=5)
    path = lj.save_adapter(tmp_path, first.moved, first.frozen, {"note": "x"})
    assert path == tmp_path / "adapter.safetensors"
    *read, meta = lj.load_adapter(tmp_path, other.trainable, other.frozen)
    assert meta == {"note": "x"}
    adapts = variants.find(name).adapts
    begun = [lj.start_from(path, other.trainable, other.frozen)] if adapts else []
    for each in (read, *begun):
        assert jax.tree.structure(tuple(each)) == jax.tree.structure((first.moved, first.frozen))
        chex.assert_trees_all_equal(tuple(each), (first.moved, first.frozen))


LORA, SMALL, DORA = (
    variants.make("lora"),
    variants.make("lora", rank=2),
    variants.make("dora"),
)


@pytest.mark.parametrize(
    "saved, expected, said",
    [
        (LORA, DORA, r"has nothing for 'adapters/embed/m', expected \[8\]"),
        (DORA, LORA, r"has \[8\] for 'adapters/embed/m', expected nothing"),
        (LORA, SMALL, r"has \[8, 16\] for 'adapters/embed/a', expected \[2, 16\]"),
    ],
)
def test_another_adapter_is_refused(saved, expected, said, tmp_path):
    one = toys.toy(LORA, "float32")

    def init(variant):
        adapted = lj.adapt(toys.decoder, variant, "embed")
        return jax.jit(adapted.init)(jax.random.key(0), one.params, one.ids)

    lj.save_adapter(tmp_path, *init(saved))
    with pytest.raises(ValueError, match=said) as error:
        lj.load_adapter(tmp_path, *init(expected))
    assert "\n" not in str(error.value)


def heads(variant=SMALL, classes=3, also=("head", "bias")):
    """A matrix that is adapted and a head, trained in full, for so many classes."""

    def forward(params, x):
        return x @ params["w"] @ params["head"] + params["bias"]

    shapes = {"w": (6, 5), "head": (5, classes), "bias": (1, 1), "x": (2, 6)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    x = params.pop("x")
    adapted = lj.adapt(forward, variant, "w", list(also))
    return jax.jit(adapted.init)(jax.random.key(0), params, x)


def test_a_head_for_other_classes_begins_anew(tmp_path):
    trained, frozen = heads()
    trained = jax.tree.map(lambda x: np.asarray(x) + 1, trained)
    path = lj.save_adapter(tmp_path, trained, frozen)
    new, _ = heads(classes=2)
    with pytest.warns(
        UserWarning, match="head for other classes; this run begins with a new one"
    ) as told:
        begun, _ = lj.start_from(path, *heads(classes=2))
    (said,) = [str(each.message) for each in told]
    assert said.endswith(": [5, 3] for 'head', here [5, 2]") and "\n" not in said
    chex.assert_trees_all_equal(begun["adapters"], trained["adapters"])
    np.testing.assert_array_equal(begun["params"]["bias"], trained["params"]["bias"])
    np.testing.assert_array_equal(begun["params"]["head"], new["params"]["head"])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        *((jnp.ones(shape), list(shape)) for shape in ((4, 3), (3,), (5, 3, 1), ())),
        (jnp.ones((5, 3), jnp.int32), "int32"),
    ],
)
def test_what_differs_in_more_than_its_classes_is_refused(head, said, tmp_path):
    """It is no head of another task, and beginning it anew would lose what was trained."""
    trained, frozen = heads()
    trained["params"]["head"] = head
    path = lj.save_adapter(tmp_path, trained, frozen)
    with pytest.raises(ValueError, match=rf"has {re.escape(str(said))} for 'head', expected"):
        lj.start_from(path, *heads())


def test_a_head_that_the_run_drops_is_told_of(tmp_path):
    trained, frozen = heads()
    path = lj.save_adapter(tmp_path, jax.tree.map(lambda x: np.asarray(x) + 1, trained), frozen)
    with pytest.warns(UserWarning, match="'head', which this run neither trains nor loads") as told:
        begun, own = lj.start_from(path, *heads(also=["bias"]))
    (said,) = [str(each.message) for each in told]
    assert said.endswith("; name it in also_train") and "\n" not in said
    assert begun["params"].keys() == {"bias"} and (own.base["head"] == 1).all()
    few = lj.save_adapter(tmp_path / "few", *heads(also=["bias"]))
    with warnings.catch_warnings(action="error"):
        begun, _ = lj.start_from(few, trained, frozen)  # one that only the run trains begins anew
    chex.assert_trees_all_equal(begun["params"]["head"], trained["params"]["head"])


def test_numbers_stay_those_of_the_new_run(tmp_path):
    theirs, own = (
        variants.make("lora", rank=2, dropout=dropout, learning_rate_ratio=ratio)
        for dropout, ratio in ((0.5, 2.0), (0.25, 8.0))
    )
    path = lj.save_adapter(tmp_path, *heads(theirs))
    constants = lj.start_from(path, *heads(own))[1].constants["w"]
    assert (float(constants["keep"]), float(constants["ratio"])) == (0.75, 8.0)


SUBTRACTED = r"a start that is subtracted \(a0, b0\)"
NO_MATRIX = "no matrix that stays fixed"


@pytest.mark.parametrize(
    ("theirs", "own", "said"),
    [
        (SMALL, {"rank": 3}, r"has \[2, 6\] for the adapter 'w/a', expected \[3, 6\]"),
        (SMALL, {"alpha": 5.0}, "'w' was trained with another scale; set its alpha"),
        # A and B have the same shapes, and would mean another weight without A0 and B0.
        (
            variants.make("pissa", rank=2),
            {},
            f"'w' was trained with {SUBTRACTED}, and this run has {NO_MATRIX}",
        ),
        (
            SMALL,
            {"name": "olora"},
            f"'w' was trained with {NO_MATRIX}, and this run has {SUBTRACTED}",
        ),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused(theirs, own, said, tmp_path):
    path = lj.save_adapter(tmp_path, *heads(theirs, 3))
    with pytest.raises(ValueError, match=said) as error:
        lj.start_from(path, *heads(variants.make(**{"name": "lora", "rank": 2, **own}), 3))
    assert "\n" not in str(error.value)


def test_a_start_that_both_runs_subtract_is_that_of_the_file(tmp_path):
    first, frozen = heads(variants.make("pissa", rank=2), 3)
    path = lj.save_adapter(tmp_path, first, frozen)
    other, own = heads(variants.make("olora", rank=2), 3)
    assert not np.array_equal(own.constants["w"]["a0"], frozen.constants["w"]["a0"])
    _, begun = lj.start_from(path, other, own)
    chex.assert_trees_all_equal(begun.constants, frozen.constants)


def refused(path, trainable, frozen, said="", ways=("load_tree", "load_adapter", "start_from")):
    """What no way to read an adapter's file takes, in one line that names it."""
    arguments = {"load_tree": (tree_file, ()), "load_adapter": (lj, (trainable, frozen))}
    for way in ways:
        module, more = arguments.get(way, (lj, (trainable, frozen)))
        with pytest.raises(ValueError, match=rf"adapter\.safetensors.*{said}") as error:
            getattr(module, way)(path, *more)
        assert len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of a small adapter, its arrays, what its header says, and its form."""
    trainable, frozen = heads(variants.make("lora", rank=2), 3)
    path = lj.save_adapter(tmp_path_factory.mktemp("saved"), trainable, frozen, {"note": "x"})
    with safetensors.safe_open(path, framework="np") as file:
        body = json.loads(file.metadata()["lora_jax"])["body"]
    return path, safetensors.numpy.load_file(path), body, trainable, frozen


def forge(path, arrays, body, seal=True, **more):
    """A file with any header: `seal` makes its digest right."""
    sealed = {"body": body, "sha256": config_digest(body)} if seal else body
    header = {"lora_jax": json.dumps(sealed)} | more
    path.write_bytes(safetensors.numpy.save(arrays, header))
    return path


SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "w", "adapters/w/a"]),
    lambda each: (
        st.lists(each, max_size=2) | st.dictionaries(st.text(max_size=2), each, max_size=2)
    ),
    max_leaves=4,
)


@SHARED
@given(JSON, st.booleans())
def test_a_header_of_any_other_type_is_one_line(saved, tmp_path, value, seal):
    _, arrays, _, trainable, frozen = saved
    refused(forge(tmp_path / "adapter.safetensors", arrays, value, seal), trainable, frozen)


@SHARED
@given(
    st.sampled_from(["tree", "meta", "leaves"]),
    st.lists(st.sampled_from(["adapters", "w", "a", "constants", "scale"]), max_size=3),
    JSON,
)
def test_a_sealed_header_of_other_types_is_one_line(saved, tmp_path, part, place, value):
    """Anywhere in it; a digest is no proof of who wrote it."""
    _, arrays, body, trainable, frozen = saved
    changed = json.loads(json.dumps(body))
    holder, key = changed, part
    for step in place:
        if isinstance(holder[key], dict) and step in holder[key]:
            holder, key = holder[key], step
    if holder[key] == value or (part == "meta" and isinstance(value, dict)):
        return
    holder[key] = value
    refused(forge(tmp_path / "adapter.safetensors", arrays, changed), trainable, frozen)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("[" * 9999, "is damaged: ValueError: its header is nested deeper"),
        ("9" * 5000, "is damaged: ValueError: its header is not JSON"),
        ("NaN", "is damaged: ValueError: its header is not JSON: NaN is not a number"),
        ('{"body": {}, "sha256": []}', "is damaged: its header differs from what was saved"),
        ("3", "was not written by lora_jax.save_tree"),
        ('{"body": {}}', "was not written by lora_jax.save_tree"),
    ],
)
def test_a_header_that_is_no_json_is_one_line(saved, tmp_path, header, said):
    _, arrays, _, trainable, frozen = saved
    path = forge(tmp_path / "adapter.safetensors", arrays, {}, lora_jax=header)
    refused(path, trainable, frozen, said)


def test_trees_of_another_form_or_kind_are_refused(saved, tmp_path):
    _, _, _, trainable, frozen = saved
    good = {**trainable, "constants": frozen.constants, "shared": {}}
    plain = jnp.ones(2)
    no_weights = {**good, "constants": {"w": plain}}
    said = r"was not written by lora_jax\.save_adapter"
    for tree in (plain, {}, {"a": plain}, {**good, "shared": plain}, no_weights):
        path = tree_file.save_tree(tmp_path, tree)
        refused(path, trainable, frozen, said, ("load_adapter", "start_from"))
    path = tree_file.save_tree(tmp_path, jax.tree.map(lambda x: jnp.ones(x.shape, jnp.int32), good))
    refused(path, trainable, frozen, "has int32 for 'adapters/w/a', expected fl", ["load_adapter"])
    # LoRA-FA's A is a constant, which is drawn: its shape is compared as a trained one's is.
    trained, frozen = heads(variants.make("lora_fa", rank=2))
    own = frozen.constants["w"]
    tree = {**trained, "constants": {"w": {**own, "a": own["a"][:, :1]}}, "shared": {}}
    path = tree_file.save_tree(tmp_path, tree)
    said = r"has \[2, 1\] for the constant 'a', expected \[2, 6\]"
    refused(path, trained, frozen, said, ["start_from"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_array_is_named(dtype):
    tree = {"a": jnp.ones(2, dtype), "b": {"c": jnp.ones(2, dtype)}, "key": jax.random.key(0)}
    require_finite({**tree, "n": np.int8(3), "whole": np.array([2**31 - 1])}, "start")
    for number in (jnp.nan, jnp.inf, -jnp.inf):
        tree["b"]["c"] = jnp.array([1, number], dtype)
        with pytest.raises(ValueError, match=r"^start: 'b/c' holds NaN or an infinity$"):
            require_finite(tree, "start")
