"""How each family's own weights are cut over a mesh: by `fsdp` along one axis, `tensor` the other.

What goes into the middle of a block (queries, keys, values; up and gate) is cut by `tensor` along
its outputs, what comes out of it along its inputs: between the two, nothing is exchanged (Shoeybi
et al. 2019, arXiv 1909.08053, section 3).
"""

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lora_jax.models.published.torch_names import path_of
from lora_jax.sharding.mesh import Rules, specs_of

VECTORS = (
    ("attention/(query|key|value)/bias", P(None, "tensor")),
    ("layers/(up|gate)/bias", P(None, "tensor")),
    (".*/(scale|bias)", P()),
)

LAYERS: Rules = (
    ("layers/.*(query|key|value)/kernel", P(None, "fsdp", "tensor")),
    ("layers/(up|gate)/kernel", P(None, "fsdp", "tensor")),
    ("layers/.*(output|down)/kernel", P(None, "tensor", "fsdp")),
    *VECTORS,
)

DECODER: Rules = (
    ("(embedding|position)/embedding", P("tensor", "fsdp")),
    ("head/kernel", P("fsdp", "tensor")),
    *LAYERS,
)

ENCODER: Rules = (
    ("embeddings/word/embedding", P("tensor", "fsdp")),
    (".*/embedding", P(None, "fsdp")),
    ("(projection|pooler)/kernel", P("fsdp", "tensor")),
    ("convolution/kernel", P(None, "fsdp", "tensor")),
    ("classifier/kernel", P("fsdp")),
    *LAYERS,
)


def shardings_of(model: nnx.Module, rules: Rules, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where the parameters of a model, or of its outline, lie: what its weights are read with."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    shapes = {path_of(keys): leaf.shape for keys, leaf in leaves}
    specs = specs_of(rules, shapes, mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
