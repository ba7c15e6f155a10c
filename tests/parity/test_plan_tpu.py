"""Llama 2 on TPUs that are not there: programs that libtpu compiles, and what it says of them."""

import json
import math
import re

import jax
import pytest

from configs import llama2_70b
from experiments.planning.abstract_step import AbstractStep
from experiments.planning.memory_fit import fit, heading, verdict
from experiments.planning.topologies import GIB, KINDS, Topology, devices_of, topology
from experiments.setup.config import parse
from lora_jax.sharding.mesh import make_mesh

pytest.importorskip("libtpu")

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.parity]
FLOATS = ("bf16", "f16", "f32")


@pytest.fixture(autouse=True)
def several_processes(monkeypatch):
    """As `prepare` has it: none of them uses a TPU."""
    for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, "1")


def config_of(argument, **model):
    made = llama2_70b.get_config(argument)
    made.model.update(model)
    return parse(made.to_dict())


def test_7b_does_not_fit_four_small_devices_with_many_rows():
    """With one row a shard it takes 4.66 GiB."""
    found = fit(config_of("model=llama_2_7b"), topology("v5e:2x2"), (1, 2, 2), 256)
    assert not found.fits and found.total is None
    assert found.why_not.startswith("Does not fit: the program needs")
    assert found.why_not.endswith("GiB that a device of v5e:2x2 has.")


def test_70b_with_lora_does_not_fit_four_small_devices():
    found = fit(config_of("model=llama_2_70b"), topology("v5e:2x2"), (1, 2, 2), 1)
    assert not found.fits
    assert found.why_not == (
        "Does not fit: weights, adapters and optimiser alone are 33.28 GiB a device, more than the "
        "15.75 GiB that a device of v5e:2x2 has."
    )


def test_70b_with_lora_fits_sixteen_small_devices():
    """Minutes of compiling, for what is claimed in README."""
    found = fit(config_of("model=llama_2_70b"), topology("v5e:4x4"), (1, 4, 4), 1)
    assert (found.tokens, found.rows) == (2048, 1)
    assert found.fits and found.total <= 11.5 * GIB
    assert verdict(found).startswith("Fits, in 72% of a device's memory")


SMALL = {
    **{"model_type": "llama", "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1536},
    **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    "max_position_embeddings": 512,
}


def test_a_small_llama_in_nf4_fits_and_gathers_bits(tmp_path):
    """70B's config with small sizes: its own program takes minutes to compile."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    config = config_of("method=qlora,tokens=128", name=str(tmp_path))
    found = fit(config, topology("v5e:2x2"), (1, 2, 2), 1)
    assert (found.tokens, found.rows) == (128, 1)
    assert found.fits and found.arrays.total < found.total < 32 * 2**20
    assert "compiled ahead of time" in heading(found)
    assert verdict(found).startswith("Fits, in 0% of a device's memory")
    mesh = make_mesh(1, 2, 2, devices=devices_of(topology("v5e:2x2")))
    step = AbstractStep.of(config, mesh, 1)
    text = step.traced(step.batch).lower(lowering_platforms=("tpu",)).compile().as_text()
    # Results of a gather, and those of its start, beside the parts that are gathered.
    kinds = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    gathered = {
        (dtype, tuple(int(size) for size in dims.split(",") if int(size) > 1))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]+)\]", " ".join(kinds))
    }
    assert any(dtype == "u8" for dtype, _ in gathered)
    # One device's part where it is used, cut by tensor alone: queries, keys, up, down.
    weights = {(512, 256), (512, 128), (512, 768), (768, 512)}
    assert not any(shape in weights for dtype, shape in gathered if dtype in FLOATS)


@pytest.mark.parametrize("kind", ["v3", "v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_listed_topologies_are_known_and_have_meshes(kind):
    for size in KINDS[kind].listed:
        chosen = topology(f"{kind}:{size}")
        devices = devices_of(chosen)
        assert len(devices) == chosen.devices
        tensor = math.gcd(4, chosen.devices)
        for sizes in ((1, chosen.devices, 1), (1, chosen.devices // tensor, tensor)):
            assert make_mesh(*sizes, devices=devices).devices.shape == sizes


@pytest.mark.parametrize("kind", ["v3", "v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_capacities_are_those_of_libtpu(kind):
    chosen = topology(f"{kind}:{KINDS[kind].listed[0]}")
    where = jax.sharding.SingleDeviceSharding(devices_of(chosen)[0])
    large = jax.ShapeDtypeStruct((2**38,), "float32", sharding=where)
    traced = jax.jit(lambda x: 2 * x + 1).trace(large)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as caught:
        traced.lower(lowering_platforms=("tpu",)).compile()
    assert f"({chosen.capacity / GIB:.2f}G)" in str(caught.value)


def test_libtpu_knows_no_such_topology():
    with pytest.raises(ValueError, match="libtpu knows no topology 'v5e:3x5'"):
        devices_of(Topology("v5e", (3, 5)))
