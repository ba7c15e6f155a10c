"""Published weights read shard by shard: the same bits, each element of a file read once."""

import functools
import itertools
import json
import math
import socket
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import Started, with_devices
from flax import nnx
from gguf_files import write_decoder
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from make_fixtures.bert import CASES as BERTS, random_tensors, save_checkpoint
from make_fixtures.deberta import CASES as DEBERTAS
from safetensors.numpy import load_file, save_file
from small_decoder import random_decoder
from torch_archive import save_bin

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import (
    load_classifier,
    load_decoder,
    placed,
    read_abstract_decoder,
)
from lora_jax.models.published.weight_files import SINGLE, Weights
from lora_jax.partition import path_name

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}
GPT2_SIZES = {"n_embd": 32, "n_inner": 48, "vocab_size": 40}
DECODERS = {  # Llama-shaped ones have two groups for four heads
    "llama": SIZES,
    "llama_tied": {**SIZES, "tie_word_embeddings": True},
    "qwen3": SIZES,
    "gpt2": GPT2_SIZES,
    "gpt2_untied": GPT2_SIZES,
}
LAYOUTS = {  # the axes of meshes for the last axes of every parameter, the last one first
    "everywhere": [],
    "columns": [("a", "b")],
    "rows": [None, ("a", "b")],
    "both": ["b", "a"],
    "half": ["b"],
    "layers": ["b", None, "a"],
}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"))


def leaves(model):
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(nnx.state(model))}


def shardings_of(model, mesh, layout):
    """A layout for every parameter, without what its sizes do not divide by."""

    def one(shape):
        spec = [None] * len(shape)
        for axis, names in zip(reversed(range(len(shape))), LAYOUTS[layout], strict=False):
            ways = math.prod(mesh.shape[name] for name in np.atleast_1d(names) if name)
            spec[axis] = names if shape[axis] % ways == 0 else None
        return NamedSharding(mesh, P(*spec))

    return {path: one(leaf.shape) for path, leaf in leaves(model).items()}


def decoder_files(folder, name, **options):
    """A published decoder of a case, in one file or several."""
    model = random_decoder(name.removesuffix("_tied"), **DECODERS[name])
    export_model(nnx.state(model), model.config, folder, **options)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of a decoder's files, not to be written to, and the model that is read of it."""

    @functools.cache
    def files(name, **options):
        folder = decoder_files(tmp_path_factory.mktemp(name), name, **options)
        return folder, load_decoder(folder)

    return files


def assert_same(model, whole, shardings):
    ours, theirs = leaves(model), leaves(whole)
    assert ours.keys() == theirs.keys() == shardings.keys()
    for path, leaf in ours.items():
        assert leaf.sharding == shardings[path] and leaf.dtype == theirs[path].dtype
        expected = np.asarray(theirs[path])
        np.testing.assert_array_equal(leaf, expected, err_msg=path)
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index], err_msg=path)


@pytest.fixture
def counted(monkeypatch):
    """How often each element of each tensor has been read, and the size of every read."""
    part, counts, sizes = Weights.part, {}, []

    def counting(self, name, index):
        assert [each.step for each in index] == [None] * len(index)
        found = part(self, name, index)
        counts.setdefault(name, np.zeros(self.shape(name), int))[index] += 1
        sizes.append((name, found.nbytes))
        return found

    def whole(self, name):
        raise AssertionError(f"{name} was read whole")

    monkeypatch.setattr(Weights, "part", counting)
    with monkeypatch.context() as patch:
        yield counts, sizes, lambda: patch.setattr(Weights, "read", whole)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *itertools.product(["llama", "gpt2"], LAYOUTS),
        *itertools.product(["llama_tied", "qwen3", "gpt2_untied"], ["columns", "both"]),
    ],
)
def test_decoders(name, layout, mesh, counted, files):
    """Replicated or not, what eight devices hold is read once, and never a whole tensor to cut."""
    counts, sizes, forbid_whole = counted
    several = {"shard_bytes": 9000} if layout in ("rows", "both") else {}
    folder, whole = files(name, **several)
    assert len(list(folder.glob("*.safetensors"))) > (3 if several else 0)
    shardings = shardings_of(whole, mesh, layout)
    forbid_whole()
    assert_same(load_decoder(folder, shardings=shardings), whole, shardings)

    stored = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    assert counts.keys() == stored.keys()
    for tensor, times in counts.items():
        assert (times == 1).all(), tensor
    assert sum(size for _, size in sizes) == sum(each.nbytes for each in stored.values())
    if layout == "columns":  # a read is of one layer, of one shard
        for tensor, size in sizes:
            parts = 3 if "c_attn" in tensor else 1  # joined queries, keys and values
            assert size * parts * 8 == stored[tensor].nbytes or stored[tensor].shape[0] % 8


@pytest.mark.parametrize(
    ("stored", "param_dtype"),
    [("float64", "bfloat16"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_types(stored, param_dtype, mesh, tmp_path):
    folder = decoder_files(tmp_path, "gpt2")
    tensors = load_file(folder / SINGLE)
    save_file({k: v.astype(jnp.dtype(stored)) for k, v in tensors.items()}, folder / SINGLE)
    whole = load_decoder(folder, param_dtype=param_dtype)
    shardings = shardings_of(whole, mesh, "both")
    assert_same(
        load_decoder(folder, param_dtype=param_dtype, shardings=shardings), whole, shardings
    )


@pytest.mark.parametrize("layout", ["everywhere", "both", "layers"])
@pytest.mark.parametrize(("name", "arch"), [("llama", "llama"), ("gpt2", "gpt2")])
def test_gguf(name, arch, layout, mesh, tmp_path, monkeypatch):
    """Only the rows of a file that a part needs are dequantised; queries' lie in another order."""
    path = write_decoder(tmp_path / "m.gguf", random_decoder(name, **DECODERS[name]), arch)
    whole = load_decoder(path)
    shardings, read, rows = shardings_of(whole, mesh, layout), GgufFile.read, []

    def counting(self, name, *some):
        rows.append((name, len(read(self, name, *some)), self.shape(name)))
        return read(self, name, *some)

    monkeypatch.setattr(GgufFile, "read", counting)
    assert_same(load_decoder(path, shardings=shardings), whole, shardings)
    parts = {shape[0] // count for name, count, shape in rows if "ffn_down.weight" in name}
    assert parts == ({1} if layout == "everywhere" else {4})  # rows are (out, in)


def test_rows_in_another_order_are_picked(mesh, tmp_path):
    """Otherwise the test above shows nothing of the order: heads of 8, 8 shards of 4 columns."""
    path = write_decoder(tmp_path / "m.gguf", random_decoder("llama", **SIZES))
    whole = load_decoder(path)
    shardings = shardings_of(whole, mesh, "columns")
    query = shardings["layers/attention/query/kernel"]
    assert query.shard_shape((2, 32, 32)) == (2, 32, 4)
    assert_same(load_decoder(path, shardings=shardings), whole, shardings)


def classifier_files(folder, name):
    family, _, case = name.partition(" ")
    config = (DEBERTAS if family == "deberta" else BERTS)[case or family][0]
    shapes = json.loads((FIXTURES / f"{family.replace('roberta', 'bert')}_shapes.json").read_text())
    tensors = random_tensors(shapes[case or family], 0)
    return save_checkpoint(folder, config, tensors), config


@pytest.mark.parametrize("layout", ["everywhere", "columns", "layers"])
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta v2", "deberta v3"])
def test_classifiers(name, layout, mesh, counted, tmp_path):
    counts, _, forbid_whole = counted
    folder, _ = classifier_files(tmp_path, name)
    options = {"num_labels": 2, "pool": "cls", "key": jax.random.key(0)}
    whole, fresh = load_classifier(folder, **options)
    assert fresh == ()
    shardings = shardings_of(whole, mesh, layout)
    forbid_whole()
    assert_same(load_classifier(folder, shardings=shardings, **options).model, whole, shardings)
    assert len(counts) > 30
    for tensor, times in counts.items():
        assert (times == 1).all(), tensor


def test_fresh_heads_are_placed_too(mesh, tmp_path):
    folder, _ = classifier_files(tmp_path, "bert")
    options = {"num_labels": 4, "pool": "cls", "key": jax.random.key(3)}
    whole = load_classifier(folder, **options)
    shardings = shardings_of(whole.model, mesh, "half")
    loaded = load_classifier(folder, shardings=shardings, **options)
    assert loaded.fresh == whole.fresh == ("classifier/kernel", "classifier/bias")
    assert loaded.model.classifier.kernel.sharding.spec == P(None, "b")
    assert_same(loaded.model, whole.model, shardings)
    again, other = (each.redrawn(jax.random.key(4)) for each in (loaded, whole))
    assert_same(again, other, shardings)


def test_torch_files(mesh, tmp_path):
    folder, _ = classifier_files(tmp_path, "bert")
    tensors = {k: v.astype(np.float32) for k, v in load_file(folder / SINGLE).items()}
    (folder / SINGLE).unlink()
    save_bin(folder / "pytorch_model.bin", tensors)
    options = {"num_labels": 2, "pool": "cls", "key": jax.random.key(0)}
    whole = load_classifier(folder, **options).model
    shardings = shardings_of(whole, mesh, "both")
    assert_same(load_classifier(folder, shardings=shardings, **options).model, whole, shardings)


def test_a_part_at_a_time_is_held(mesh, tmp_path, monkeypatch):
    """Of what was read from the file; beside it there is the shard that it goes into."""
    folder = decoder_files(tmp_path, "llama")
    shardings = shardings_of(read_abstract_decoder(folder), mesh, "both")
    read, alive = Weights.part, []

    def watched(self, name, index):
        assert sum(each() is not None for each in alive) <= 1
        part = read(self, name, index)
        alive.append(weakref.ref(part))
        return part

    monkeypatch.setattr(Weights, "part", watched)
    load_decoder(folder, shardings=shardings)
    assert len(alive) > 100


def test_a_part_is_put_before_the_next_is_read(mesh):
    """Host memory holds one shard, where devices have memory of their own."""
    sharding, asked = NamedSharding(mesh, P("b")), []

    def read(index):
        asked.append(index)
        return np.full((2, 3), len(asked), np.float32)

    array = placed((8, 3), jnp.float32, sharding, read)
    assert asked == [(slice(2 * i, 2 * i + 2), slice(0, 3)) for i in range(4)]
    np.testing.assert_array_equal(array[:, 0], np.repeat([1, 2, 3, 4], 2))
    assert len(array.addressable_shards) == 8


# ---- what does not fit -------------------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch):
    def refuse(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(Weights, "part", refuse)
    monkeypatch.setattr(Weights, "read", refuse)


def test_unknown_missing_and_unfit_shardings(mesh, tmp_path, unread):
    folder = decoder_files(tmp_path, "llama")
    good = shardings_of(read_abstract_decoder(folder), mesh, "both")
    unknown = {**good, "layers/atention/query/kernel": NamedSharding(mesh, P())}
    lacking = {path: each for path, each in good.items() if path != "layers/up/kernel"}
    unfit = {**good, "norm/scale": NamedSharding(Mesh(jax.devices()[:3], "c"), P("c"))}
    for shardings, message in (
        (
            unknown,
            "'layers/atention/query/kernel' is not a parameter; "
            "nearest: 'layers/attention/query/kernel'",
        ),
        (lacking, "parameter 'layers/up/kernel' has none; nearest that has: 'layers/"),
        (unfit, r"parameter 'norm/scale' of shape \(32,\): "),
    ):
        with pytest.raises(ValueError, match=f"^shardings: {message}") as caught:
            load_decoder(folder, shardings=shardings)
        assert "\n" not in str(caught.value)

    folder, _ = classifier_files(tmp_path / "bert", "bert")
    with pytest.raises(
        ValueError, match="'norm/scale' is not a parameter; nearest: 'embeddings/norm/scale"
    ):
        load_classifier(
            folder,
            num_labels=2,
            pool="cls",
            key=jax.random.key(0),
            shardings={"norm/scale": NamedSharding(mesh, P())},
        )


def test_parts_that_are_not_finite_are_named(mesh, tmp_path):
    folder = decoder_files(tmp_path, "llama")
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"][47, 31] = np.inf
    save_file(tensors, folder / SINGLE)
    shardings = shardings_of(read_abstract_decoder(folder), mesh, "both")
    with pytest.raises(ValueError, match=r"model.safetensors: tensor '.*1.mlp.up_proj.weight' hol"):
        load_decoder(folder, shardings=shardings)


# ---- several processes -------------------------------------------------------------------------

PROCESS = """
import sys
port, number, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lora_jax.models.published.load import load_decoder, read_abstract_decoder
from lora_jax.models.published.weight_files import Weights
from lora_jax.partition import path_name

mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"))
shapes = jax.tree.leaves_with_path(nnx.state(read_abstract_decoder(folder)))
spec = lambda path: P(None, "a", "b") if path.startswith("layers/") and "kernel" in path else P()
shardings = {path_name(key): NamedSharding(mesh, spec(path_name(key))) for key, _ in shapes}
part, read = Weights.part, {}

def counting(self, name, index):
    found = part(self, name, index)
    read[name] = read.get(name, 0) + found.nbytes
    return found

Weights.part = counting
model = load_decoder(folder, shardings=shardings)
Weights.part = part
leaves = jax.tree.leaves_with_path(nnx.state(load_decoder(folder)))
whole = {path_name(k): v for k, v in leaves}
for key, leaf in jax.tree.leaves_with_path(nnx.state(model)):
    assert len(leaf.sharding.device_set) == 8 and len(leaf.addressable_shards) == 4
    for shard in leaf.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(whole[path_name(key)])[shard.index])
print("UP", read["model.layers.0.mlp.up_proj.weight"], "HEAD", read["lm_head.weight"])
jax.distributed.shutdown()
"""


def test_a_process_reads_what_its_own_devices_hold(tmp_path):
    """Two of four devices each: half of what is split between them, all of what each has."""
    folder = decoder_files(tmp_path, "llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    processes = [Started(script, port, n, folder, **with_devices(4)) for n in range(2)]
    try:
        for process in processes:
            done = process.end()
            assert done.returncode == 0, done.stderr
            assert f"UP {32 * 48 * 4 // 2} HEAD {32 * 40 * 4}" in done.stdout
    finally:
        for process in processes:
            process.kill()
