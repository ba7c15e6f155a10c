"""What is to be held in memory: said before it is taken, and refused where it does not fit."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from small_decoder import random_decoder

from configs import quickstart
from configs.settings import GenerateSettings
from experiments.planning.abstract_step import AbstractStep
from experiments.runs import run, training
from experiments.runs.announce import Held
from experiments.setup import completion
from experiments.setup.config import parse
from experiments.setup.devices import mesh_of
from experiments.setup.experiment import build
from experiments.setup.out_of_memory import (
    explained,
    of_a_step,
    of_evaluation,
    of_loading,
    of_texts,
)
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_classifier, load_decoder, read_abstract_decoder
from lora_jax.models.published.weight_files import Weights
from lora_jax.partition import path_name
from lora_jax.records import run_record
from lora_jax.sharding import memory
from lora_jax.training.saved_trials import without_optimizer
from lora_jax.training.state_leaves import bare

GIB = 2**30


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


def bytes_of(tree):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {9 * GIB // 1024} kB\nMemAvailable: {7 * 2**20} kB\n"}
SECOND = {"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/step/memory.max": "max\n"}
LIMITED = {"sys/fs/cgroup/job/memory.max": f"{5 * GIB}\n"}
USED = {"sys/fs/cgroup/job/memory.stat": f"anon {2 * GIB}\nfile {4 * GIB}\n"}
FIRST = {"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n"}
OLD = {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{6 * GIB}\n"}
OLD |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}
OLD_USED = {"sys/fs/cgroup/memory/a/memory.stat": f"rss 1\ntotal_rss {2 * GIB}\n"}
# Seen from inside a container, the path of the group is not there.
INSIDE = {"proc/self/cgroup": "0::/kubepods/pod\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 7),
        ({**MACHINE, **SECOND}, 7),
        ({**MACHINE, **SECOND, **LIMITED}, 5),
        ({**MACHINE, **SECOND, **LIMITED, **USED}, 3),
        ({**MACHINE, **FIRST, **OLD}, 6),
        ({**MACHINE, **FIRST, **OLD, **OLD_USED}, 4),
        ({**MACHINE, **INSIDE}, 2),
        ({**SECOND, **LIMITED}, 5),
    ],
)
def test_what_a_machine_or_its_group_has_left(tmp_path, files, expected):
    found = memory.host_memory(system(tmp_path, files))
    assert found == (None if expected is None else expected * GIB)


def test_this_machine_has_some():
    assert 10_000_000 < memory.available() < 2**50


def test_sizes_are_said_as_people_say_them():
    assert [memory.size(count) for count in (0, 2**20, 1.5 * GIB, 7_540 * GIB)] == [
        "0.0 MiB",
        "1.0 MiB",
        "1.5 GiB",
        "7,540.0 GiB",
    ]


@pytest.fixture
def room(monkeypatch):
    """Says how much memory there is; and nothing may be read of weights."""

    def says(count):
        monkeypatch.setattr(memory, "host_memory", lambda: count)

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Weights, "read", read)
    monkeypatch.setattr(Weights, "part", read)
    return says


def load_encoder(folder, **options):
    return load_classifier(folder, num_labels=2, pool="mean", key=jax.random.key(0), **options)


@pytest.fixture(scope="module")
def folders(smoke, tmp_path_factory):
    decoder = random_decoder()
    path = tmp_path_factory.mktemp("decoder")
    export_model(nnx.state(decoder), decoder.config, path)
    return {load_encoder: smoke().model.name, load_decoder: path}


@pytest.mark.parametrize("load", [load_encoder, load_decoder])
def test_weights_that_do_not_fit_are_not_read(folders, room, load):
    with safe_open(f"{folders[load]}/model.safetensors", "np") as file:
        stored = bytes_of([file.get_tensor(name) for name in file.keys()])  # noqa: SIM118
    room(stored - 1)
    both = f"its weights take {memory.size(stored)}, and {memory.size(stored - 1)} of memory are"
    with pytest.raises(ValueError, match=re.escape(both)) as caught:
        load(folders[load])
    assert str(caught.value).startswith(str(folders[load]))
    room(stored)
    with pytest.raises(AssertionError, match="weights were read"):
        load(folders[load])
    room(stored // 2 - 1)
    with pytest.raises(ValueError, match=re.escape(f"take {memory.size(stored // 2)}, and")):
        load(folders[load], param_dtype=jnp.bfloat16)


def test_devices_that_the_cpu_stands_for_share_its_memory(folders, room):
    """A vector that is not cut is there eight times."""
    shapes = {"cut": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
    shapes |= {"whole": jax.ShapeDtypeStruct((4,), jnp.float32)}
    mesh = mesh_of([8, 1, 1])
    where = {"cut": PartitionSpec("data"), "whole": PartitionSpec()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in where.items()}
    needed = 16 * 4 * 4 + 8 * 4 * 4
    room(needed)
    memory.check_fits("a model", shapes, shardings)
    room(needed - 1)
    with pytest.raises(ValueError, match=r"^a model: its weights take"):
        memory.check_fits("a model", shapes, shardings)
    room(None)  # where nothing says how much there is
    memory.check_fits("a model", shapes, shardings)

    state = nnx.state(read_abstract_decoder(folders[load_decoder]))
    leaves = {path_name(k): v for k, v in jax.tree_util.tree_leaves_with_path(state)}
    everywhere = dict.fromkeys(leaves, shardings["whole"])
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    room(8 * whole - 1)
    with pytest.raises(ValueError, match=re.escape(f"take {memory.size(8 * whole)}, and")):
        load_decoder(folders[load_decoder], shardings=everywhere)


@pytest.mark.parametrize(
    ("arg", "changes"),
    [
        ("variant=full", {}),
        ("variant=adalora,storage=int8", {"variant__total_steps": 8, "train__select": "best"}),
    ],
)
def test_what_is_said_is_what_is_held(smoke, arg, changes):
    config = smoke(arg, **changes)
    said, experiment = Held.of(AbstractStep.of(config)), build(config)
    state, frozen = experiment.start(), experiment.frozen
    twice = experiment.trainable, state.trainable["adapters"]
    assert said.trained == bytes_of((twice, frozen.constants, frozen.shared))
    assert said.optimizer == bytes_of((state.opt_state, state.variant_state))
    loaded = load_encoder(config.model.name).model
    quantised = [each for each in frozen.base.values() if isinstance(each, dict)]
    assert len(quantised) == (6 if "int8" in arg else 0)
    assert said.weights == bytes_of((nnx.state(loaded), quantised))
    copies = [state]
    if config.train.select == "best":  # what is kept, and the copy of it that is written
        copies += 2 * [without_optimizer(state)]
    assert said.saved == bytes_of(jax.tree.map(bare, copies))
    assert said.merged == 0


def xla_out_of_memory():
    return jax.block_until_ready(jax.jit(lambda: jnp.zeros(2**50, jnp.int8) + 1)())


def in_parts(batch_size, accumulate):
    """The quickstart's settings with such batches, of texts of 64 tokens."""
    made = quickstart.get_config()
    made.train.batch_size, made.train.accumulate = batch_size, accumulate
    made.data.max_length = 64
    return parse(made.to_dict())


def test_xla_has_no_memory_left_in_a_line():
    with pytest.raises(jax.errors.JaxRuntimeError):
        xla_out_of_memory()
    advised = of_a_step(in_parts(12, 2))
    with pytest.raises(ValueError, match=r"^out of memory") as caught, explained(advised):
        xla_out_of_memory()
    said = str(caught.value)
    assert said.startswith("out of memory: config.train.batch_size 12 in parts of 6 rows; raise")
    assert "\n" not in said
    assert "of 6 rows; raise config.train.accumulate from 2 to 4 (the same batch" in said
    assert "or config.data.max_length 64" in said


def test_a_row_at_a_time_cannot_be_cut():
    one = in_parts(4, 4)
    assert "accumulate" not in of_a_step(one)
    # a prime number of rows, too many to look for what divides it
    assert "accumulate" not in of_a_step(in_parts(2**61 - 1, 1))
    lower = r"of 1 rows; lower config\.train\.batch_size"
    with pytest.raises(ValueError, match=lower), explained(of_a_step(one)):
        raise MemoryError


def test_each_phase_names_what_it_can_lower():
    """Of a batch of 12 in parts of 6: an evaluation has no parts, and texts are no batch at all."""
    config = in_parts(12, 2)
    assert "accumulate" not in of_evaluation(config)
    assert "config.train.batch_size 12 in evaluation; lower" in of_evaluation(config)
    texts = of_texts(GenerateSettings(batch_size=64, beams=5))
    assert "generate.batch_size 64, config.generate.beams 5 or" in texts and "train" not in texts
    assert "beams" not in of_texts(GenerateSettings())
    assert "train" not in of_loading(config.model) and "config.model.dtype" in of_loading(
        config.model
    )


@pytest.mark.parametrize("error", [ValueError("x"), jax.errors.JaxRuntimeError("INTERNAL: x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, explained("what to lower"):
        raise error
    assert caught.value is error


def test_a_step_that_does_not_fit_ends_a_run_in_a_line(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: xla_out_of_memory())
    with pytest.raises(
        ValueError, match=r"^out of memory: config\.train\.batch_size 8 in parts of 8"
    ):
        run.run(smoke(), tmp_path / "run")
    record = run_record.read(tmp_path / "run")
    assert record is not None
    assert record.status == "failed"
    assert record.note.startswith("ValueError: out of memory: config.train.batch_size 8")


def test_a_batch_of_more_rows_than_memory_is_refused_before_it_is_made(smoke, tmp_path):
    with pytest.raises(ValueError, match=r"config\.train\.batch_size 1099511627776 .*its ids take"):
        run.run(smoke(train__batch_size=2**40), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_whose_cache_does_not_fit(monkeypatch):
    decoder = random_decoder()
    config = decoder.config
    numbers = GenerateSettings(batch_size=3, beams=2, max_new_tokens=7, samples=1, scored=0)
    slots = 3 * 2 * 7
    # keys and values in float32; a position, whether there is a token, and how many there are
    each = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    needed = slots * (each + 4 + 1) + 4
    monkeypatch.setattr(memory, "host_memory", lambda: needed)
    completion._check_cache(decoder, numbers)
    monkeypatch.setattr(memory, "host_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"^config\.generate: 7 tokens .* of 6 texts .*lower one"):
        completion._check_cache(decoder, numbers)
    completion._check_cache(decoder, dataclasses.replace(numbers, samples=0))
