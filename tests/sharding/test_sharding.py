"""Meshes, and where tables of rules and the automatic choice put the weights of models."""

import itertools
import math
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, PartitionSpec as P
from make_fixtures import bert, deberta, decoders

import lora_jax as lj
from lora_jax.base import WeightUse
from lora_jax.models import families
from lora_jax.models.parts.family import DECODER, ENCODER, shardings_of
from lora_jax.partition import path_name
from lora_jax.sharding.mesh import SMALL, automatic, fitting, mesh_sizes, part_count, specs_of

# ---- meshes --------------------------------------------------------------------------------------


def test_a_mesh_has_its_axes_in_order_and_one_size_may_be_left_open():
    mesh = lj.make_mesh(2, -1, 2)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == (2, 2, 2)
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())
    some = jax.devices()[3:5]
    assert list(lj.make_mesh(tensor=2, devices=some).devices.flat) == some


def test_sizes_make_up_the_devices_or_are_an_error():
    """Against trying every mesh of 8 devices."""
    meshes = [each for each in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(each) == 8]
    for sizes in itertools.product((-1, 1, 2, 3, 8), repeat=3):
        possible = [
            each
            for each in meshes
            if all(size in (-1, n) for size, n in zip(sizes, each, strict=True))
        ]
        if sizes.count(-1) <= 1 and possible:
            assert [mesh_sizes(sizes, 8)] == possible
        else:
            with pytest.raises(ValueError, match=f"mesh {','.join(map(str, sizes))}"):
                mesh_sizes(sizes, 8)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((2, 2), "mesh 2,2: expected the sizes of data, fsdp, tensor"),
        ((-1, -1, 1), "mesh -1,-1,1: expected the sizes of data, fsdp, tensor, at most one -1"),
        ((0, 8, 1), "mesh 0,8,1: sizes must be at least 1, or -1"),
        ((-2, 8, 1), "mesh -2,8,1: sizes must be at least 1, or -1"),
        ((16, -1, 1), "mesh 16,-1,1 needs a multiple of 16 devices; there are 8"),
    ],
)
def test_what_is_wrong_with_sizes_is_said(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh_sizes(sizes, 8)


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    return lj.make_mesh(1, 4, 2)


def test_the_first_rule_that_matches_decides(mesh):
    rules = [("up/kernel", P("fsdp", "tensor")), (".*/kernel", P("tensor")), (".*", P())]
    shapes = {"a/up/kernel": (8, 8), "a/down/kernel": (8, 8), "a/scale": (8,)}
    assert specs_of(rules, shapes, mesh) == {
        "a/up/kernel": P("fsdp", "tensor"),
        "a/down/kernel": P("tensor", None),
        "a/scale": P(None),
    }


def test_uneven_axes_stay_whole_and_one_warning_names_them(mesh):
    rules = [(".*", P(("data", "fsdp"), "tensor"))]
    shapes = {"uneven/rows": (6, 8), "uneven/both": (6, 7), "even": (8, 8)}
    with pytest.warns(UserWarning) as warned:
        specs = specs_of(rules, shapes, mesh)
    assert specs == {
        "uneven/rows": P("data", "tensor"),  # of one device
        "uneven/both": P("data", None),
        "even": P(("data", "fsdp"), "tensor"),
    }
    (said,) = [str(each.message) for each in warned]
    assert "uneven/rows (6, 8)" in said and "uneven/both (6, 7)" in said
    assert "'fsdp': 4" in said and "even (8, 8)" not in said


def test_an_axis_of_one_device_divides_everything():
    alone = lj.make_mesh(devices=jax.devices()[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = specs_of([(".*", P("fsdp", "tensor"))], {"w": (3, 5)}, alone)
    assert found == {"w": P("fsdp", "tensor")}


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("layers/up/kernel", P())], "no rule says how 'layers/down/kernel' is sharded; nearest: "
         "'layers/up/kernel'"),
        ([(".*", P(None, None, "tensor"))], r"'layers/down/kernel' has 2 axes, but .* has more"),
        ([(".*", P("model"))], "'layers/down/kernel': the mesh has no axis 'model', only data, f"),
        ([(".*", P(("fsdp", "x")))], "'layers/down/kernel': the mesh has no axis 'x', only data"),
        ([(".*", P("fsdp", "fsdp"))], "'layers/down/kernel': its rule .* names 'fsdp' twice"),
        ([("(", P())], "pattern '\\(' is not a regular expression"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_followed_is_an_error(mesh, rules, message):
    with pytest.raises(ValueError, match=message):
        specs_of(rules, {"layers/down/kernel": (8, 8)}, mesh)


SIZES = st.sampled_from((1, 2, 3, 6, 8, 12, 40, 64, 96, 128, 250, 384, 1024, 4096))
MESHES = [lj.make_mesh(*each) for each in ((1, 4, 2), (2, 2, 2), (1, 1, 8), (8, 1, 1), (1, 8, 1))]
ENTRIES = st.sampled_from((None, "data", "fsdp", "tensor", ("data", "fsdp"), ("fsdp", "tensor")))


@settings(max_examples=200)
@given(st.lists(st.tuples(ENTRIES, SIZES), max_size=4), st.sampled_from(MESHES), st.data())
def test_what_fits_is_as_much_of_every_entry_as_divides_its_axis(axes, mesh, data):
    spec, shape = tuple(entry for entry, _ in axes), tuple(size for _, size in axes)
    cut = data.draw(st.integers(0, len(spec)))
    found = fitting(P(*spec[:cut]), shape, mesh)
    assert len(found) == len(shape)
    for each, entry, size in zip(found, (*spec[:cut], *[None] * len(spec)), shape, strict=False):
        names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        begun = [names[:count] for count in range(len(names) + 1)]
        fits = [some for some in begun if size % math.prod(mesh.shape[n] for n in some) == 0]
        assert part_count(each, mesh) == part_count(fits[-1], mesh)
        assert (each if isinstance(each, tuple) else (each,) if each else ()) == fits[-1]


# ---- the automatic choice ------------------------------------------------------------------------


@st.composite
def weight_uses(draw):
    """A weight as it may be used: stacked or not, with inputs and outputs of one axis or more."""
    shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=5)))
    roles = [draw(st.sampled_from("sio-")) for _ in shape]
    axes = {role: tuple(i for i, each in enumerate(roles) if each == role) for role in "sio"}
    if not axes["i"] and not axes["o"]:
        axes["s"] = ()
    return WeightUse("w", shape, np.dtype("float32"), axes["s"], axes["i"], axes["o"])


@settings(max_examples=500)
@given(weight_uses(), st.sampled_from(MESHES))
def test_automatic_specs_divide_and_name_no_mesh_axis_twice(use, mesh):
    spec = automatic({"w": use}, mesh)["w"]
    assert len(spec) == len(use.shape)
    assert spec == fitting(spec, use.shape, mesh)
    names = [name for entry in spec if entry for name in np.atleast_1d(entry)]
    assert len(names) == len(set(names)) and set(names) <= {"fsdp", "tensor"}
    if math.prod(use.shape) < SMALL:
        assert not names
    for axis in use.stack:
        assert spec[axis] is None or not (use.inputs and use.outputs)  # matrices of a stack: whole


@settings(max_examples=300)
@given(SIZES, SIZES, st.sampled_from(MESHES), st.booleans())
def test_large_matrices_are_cut_by_all_that_fits(inputs, outputs, mesh, stacked):
    """What widens by outputs over `tensor`, what narrows by inputs; a square one is cut by both."""
    shape, first = ((2, inputs, outputs), 1) if stacked else ((inputs, outputs), 0)
    use = WeightUse("w", shape, np.dtype("float32"), (0,) * first, (first,), (first + 1,))
    into, out = automatic({"w": use}, mesh)["w"][first:]
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    if math.prod(shape) < SMALL:
        assert (into, out) == (None, None)
    elif inputs == outputs:
        assert into is None and part_count(out, mesh) == (
            fsdp * tensor if outputs % (fsdp * tensor) == 0 else fsdp if outputs % fsdp == 0 else 1
        )
    else:
        long, short = (out, into) if outputs > inputs else (into, out)
        assert long == ("tensor" if max(inputs, outputs) % tensor == 0 else None) or long == "fsdp"
        assert short == ("fsdp" if min(inputs, outputs) % fsdp == 0 else None)
        # Where the short axis does not divide, the long one may: then by one of the two.
        assert (long == "fsdp") <= (max(inputs, outputs) % tensor != 0)


def test_heads_as_an_axis_of_their_own_are_cut_by_heads(mesh):
    query = WeightUse("q", (3, 64, 16, 8), np.dtype("float32"), (0,), (1,), (2, 3))
    output = WeightUse("o", (3, 16, 8, 64), np.dtype("float32"), (0,), (1, 2), (3,))
    found = automatic({"q": query, "o": output}, mesh)
    assert found == {"q": P(None, "fsdp", "tensor", None), "o": P(None, "tensor", None, "fsdp")}


# ---- the families' tables ------------------------------------------------------------------------


def abstract_models():
    """Every fixture's model, by shapes alone, with its family's table."""
    for name, content in decoders.CASES.items():
        family = families.family_of(content)
        config = family.config.from_json(content)
        yield name, DECODER, lambda f=family, c=config: f.model(c, rngs=nnx.Rngs(0))
    cases = [(name, content) for name, (content, _) in bert.CASES.items()]
    cases += [(name, content) for name, (content, *_) in deberta.CASES.items()]
    for name, content in cases:
        family = families.family_of(content)
        config = family.config.from_json(content)
        make = family.model
        for pool in ("cls", "mean"):
            yield (
                f"{name}_{pool}",
                ENCODER,
                lambda m=make, c=config, p=pool: m(c, 2, p, rngs=nnx.Rngs(0)),
            )


ABSTRACT_MODELS = {name: (rules, make) for name, rules, make in abstract_models()}


@pytest.mark.parametrize("name", ABSTRACT_MODELS)
@pytest.mark.filterwarnings("ignore:left whole")
def test_a_table_covers_every_parameter_of_its_families(name):
    """And cuts every large one by both axes, where they are even."""
    rules, make = ABSTRACT_MODELS[name]
    model = nnx.eval_shape(make)
    small = lj.make_mesh(1, 2, 2, devices=jax.devices()[:4])
    found = shardings_of(model, rules, small)
    shapes = {
        path_name(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))
    }
    assert found.keys() == shapes.keys()
    for path, shape in shapes.items():
        cut = {name for entry in found[path].spec if entry for name in np.atleast_1d(entry)}
        large = len(shape) - path.startswith("layers/") == 2 and path.endswith("kernel")
        large |= path.endswith(("embeddings/word/embedding", "convolution/kernel"))
        large &= not path.startswith("classifier")  # its outputs are a few labels
        if large and all(size % 2 == 0 for size in shape[-2:]):
            assert cut == {"fsdp", "tensor"}, (path, found[path].spec)


@pytest.mark.parametrize("name", ["llama_biases", "qwen3_windows", "gpt2_untied", "v2_cls"])
@pytest.mark.filterwarnings("ignore:left whole")
def test_what_goes_into_a_block_is_cut_by_outputs_and_what_leaves_it_by_inputs(name):
    rules, make = ABSTRACT_MODELS[name]
    found = shardings_of(nnx.eval_shape(make), rules, lj.make_mesh(1, 2, 2, jax.devices()[:4]))
    into = [path for path in found if path.endswith(("query/kernel", "up/kernel", "gate/kernel"))]
    out = [path for path in found if path.endswith(("output/kernel", "down/kernel"))]
    assert len(into) >= 2 and len(out) == 2
    assert {found[path].spec for path in into} == {P(None, "fsdp", "tensor")}
    assert {found[path].spec for path in out} == {P(None, "tensor", "fsdp")}
