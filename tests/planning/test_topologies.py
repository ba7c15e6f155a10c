"""Names of devices that one may rent, and meshes of them."""

import jax
import pytest

from experiments.planning import topologies
from experiments.planning.topologies import GIB, Topology, topology
from lora_jax.sharding.mesh import make_mesh


@pytest.fixture(autouse=True)
def without_libtpu(monkeypatch):
    monkeypatch.setattr(topologies, "has_libtpu", lambda: False)


@pytest.mark.parametrize(
    ("name", "devices", "gib"),
    [
        ("v5e:4x4", 16, 15.75),
        ("v3:4x8", 64, 15.48),  # not a listed one
        ("v5p:2x2x4", 16, 95.74),
        ("v4:2x2x1", 4, 30.75),  # a chip is one device
        ("v3:2x2", 8, 15.48),  # and here, two
        ("tpu7x:2x2x1", 8, 94.75),
        ("h100:8", 8, 80e9 / GIB),
        ("l4:1", 1, 24e9 / GIB),
        ("a100-40:3", 3, 40e9 / GIB),
    ],
)
def test_names(name, devices, gib):
    found = topology(name)
    assert str(found) == name
    assert found.devices == devices
    assert abs(found.capacity - gib * GIB) < 1
    assert not found.ahead


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5f:4x4", "no devices 'v5f'; nearest: 'v5"),
        ("h10:8", "no devices 'h10'; nearest: 'h100'"),
        ("", "no devices '': there are v3, v4, v5e, "),
        ("v9:4x4", "no devices 'v9': there are .*, h100, h200; as in v5e:4x4"),
        ("None", "no devices 'None'"),
        ("v5e", "--topology=v5e: expected v5e: and a size, such as v5e:1x1"),
        ("v5e:16", "--topology=v5e:16: expected v5e: and"),
        ("v5e:0x4", "--topology=v5e:0x4"),
        ("v5e:4x4x4", "--topology=v5e:4x4x4"),
        ("v5e:3x5", "--topology=v5e:3x5: no slice of v5e; there are 1x1, 2x2, .*, 8x16, 16x16$"),
        ("v6e:8x4", "--topology=v6e:8x4: no slice of v6e; there are .*, 4x8, "),
        ("v5p:4x4", "--topology=v5p:4x4: expected v5p: and a size, such as v5p:2x2x1"),
        ("h100:2x4", "--topology=h100:2x4: expected h100: and a size, such as h100:1"),
        ("h100:-8", "--topology=h100:-8"),
    ],
)
def test_names_that_are_none(name, said):
    with pytest.raises(ValueError, match=said):
        topology(name)


def test_simulated_devices():
    assert len(topologies.devices_of(topology("v5e:2x4"))) == 8
    assert len(topologies.devices_of(Topology("h100", (2,)))) == 2


def test_a_mesh_whose_axes_have_to_share_links(monkeypatch):
    """As JAX has it of v6e:8x8 by 16 and 4: devices of other TPUs than v5e's."""

    def refuse(*_, **__):
        raise NotImplementedError("Failed to find assignment")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh(1, 4, 2)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert mesh.devices.size == 8
