"""From the sizes on a command line to a mesh of this machine's devices, or of all machines'."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from lora_jax.sharding.mesh import make_mesh, mesh_sizes


def mesh_of(sizes: Sequence[int] | None) -> Mesh | None:
    """The mesh of some sizes; of all devices, as `data`, where there are none.

    None where one device trains alone. A process by itself may leave devices out.

    Raises:
      ValueError: sizes that these devices cannot make up.
    """
    devices = jax.devices()
    sizes = (len(devices), 1, 1) if sizes is None else tuple(sizes)
    wanted = math.prod(sizes)
    if jax.process_count() == 1 and 0 < wanted < len(devices):
        devices = devices[:wanted]
    mesh = make_mesh(*mesh_sizes(sizes, len(devices)), devices=devices)
    return None if mesh.size == 1 else mesh
