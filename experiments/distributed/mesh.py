"""Make a mesh of the devices of all processes from the sizes on a command line."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from lora_jax.sharding.mesh import make_mesh, mesh_sizes


def mesh_of(sizes: Sequence[int] | None) -> Mesh | None:
    """The mesh with these sizes of data, fsdp and tensor; by default all devices are `data`.

    The result is None if one device trains alone. A single process may use only some devices.

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    devices = jax.devices()
    sizes = (len(devices), 1, 1) if sizes is None else tuple(sizes)
    wanted = math.prod(sizes)
    if jax.process_count() == 1 and 0 < wanted < len(devices):
        devices = devices[:wanted]
    mesh = make_mesh(*mesh_sizes(sizes, len(devices), "--mesh="), devices=devices)
    return None if mesh.size == 1 else mesh
