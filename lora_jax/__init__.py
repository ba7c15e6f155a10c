"""LoRA variants for any JAX function."""

from lora_jax.adapt import Adapted as Adapted
from lora_jax.adapt import adapt as adapt
from lora_jax.contract import check as check
from lora_jax.discover import Uses as Uses
from lora_jax.discover import WeightUse as WeightUse
from lora_jax.discover import discover as discover
from lora_jax.frozen import Frozen as Frozen
from lora_jax.nnx import from_nnx as from_nnx
from lora_jax.partition import ABSENT as ABSENT
from lora_jax.partition import combine as combine
from lora_jax.partition import partition as partition
from lora_jax.select import layers as layers
from lora_jax.summary import summary as summary
from lora_jax.variant import Base as Base
from lora_jax.variant import Factors as Factors
from lora_jax.variant import Variant as Variant
