"""LoRA variants for any JAX function.

The names here are the package's interface. No file of the package imports them from here: folders
import one another, and one way only, in the order that `tests/test_imports.py` keeps.
"""

from lora_jax.adapters.adapter_file import load_adapter as load_adapter
from lora_jax.adapters.adapter_file import save_adapter as save_adapter
from lora_jax.adapters.adapter_file import start_from as start_from
from lora_jax.compiled import compiler_faults
from lora_jax.contract import check as check
from lora_jax.nnx import from_nnx as from_nnx
from lora_jax.partition import ABSENT as ABSENT
from lora_jax.partition import combine as combine
from lora_jax.partition import partition as partition
from lora_jax.quantization.quantize import NF4 as NF4
from lora_jax.quantization.quantize import Int8 as Int8
from lora_jax.sharding.layout import Layout as Layout
from lora_jax.sharding.layout import lay_out as lay_out
from lora_jax.sharding.mesh import make_mesh as make_mesh
from lora_jax.transform.adapt import Adapted as Adapted
from lora_jax.transform.adapt import adapt as adapt
from lora_jax.transform.discover import discover as discover
from lora_jax.transform.placement import Frozen as Frozen
from lora_jax.transform.prune import prune as prune
from lora_jax.transform.prune import ranks as ranks
from lora_jax.transform.summary import summary as summary
from lora_jax.transform.target_patterns import layers as layers
from lora_jax.uses import Uses as Uses
from lora_jax.uses import WeightUse as WeightUse
from lora_jax.variant import Base as Base
from lora_jax.variant import Factors as Factors
from lora_jax.variant import TrainingWarning as TrainingWarning
from lora_jax.variant import Variant as Variant

compiler_faults.cure()
