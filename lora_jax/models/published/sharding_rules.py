"""How base weights are sharded over a mesh: one axis over `fsdp`, the other over `tensor`.

The first matrices of a block (queries, keys, values; up and gate) are sharded over `tensor` by
outputs, its last matrix by inputs. Between the two, devices exchange nothing (Shoeybi et al. 2019,
arXiv 1909.08053, section 3).
"""

from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from lora_jax.partition import flatten
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
    """The sharding of each parameter of a model, abstract or not, for loading its weights."""
    shapes = {path: leaf.shape for path, leaf in flatten(nnx.state(model))[0].items()}
    specs = specs_of(rules, shapes, mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
