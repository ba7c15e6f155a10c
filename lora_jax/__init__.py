"""LoRA variants for any JAX function.

The names here are the package's interface. Each is imported where it is first used, so that
`import lora_jax` costs little. No file of the package imports them from here: folders import one
another, and one way only, in the order that `tests/test_imports.py` keeps.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lora_jax.compiled import compiler_faults

# At once, as the name of this function is that of its file, which is imported in any case.
from lora_jax.partition import (
    ABSENT as ABSENT,
    combine as combine,
    from_nnx as from_nnx,
    partition as partition,
)

if TYPE_CHECKING:
    from lora_jax.adapters import distance as distance
    from lora_jax.adapters.adapter_file import (
        load_adapter as load_adapter,
        load_seen as load_seen,
        save_adapter as save_adapter,
        save_seen as save_seen,
        start_from as start_from,
    )
    from lora_jax.adapters.base_digest import base_digests as base_digests
    from lora_jax.adapters.combination import (
        Combined as Combined,
        combine_adapters as combine_adapters,
    )
    from lora_jax.base import Uses as Uses, WeightUse as WeightUse
    from lora_jax.contract import check as check
    from lora_jax.interchange.load_loralib import load_loralib as load_loralib
    from lora_jax.interchange.load_peft import PeftReader as PeftReader, load_peft as load_peft
    from lora_jax.interchange.names import names_from_patterns as names_from_patterns
    from lora_jax.interchange.save_loralib import save_loralib as save_loralib
    from lora_jax.interchange.save_peft import save_peft as save_peft
    from lora_jax.interchange.save_plain_lora import save_plain_lora as save_plain_lora
    from lora_jax.quantization.quantize import NF4 as NF4, Int8 as Int8
    from lora_jax.serving.adapter_store import (
        AdapterStore as AdapterStore,
        UnknownAdapterError as UnknownAdapterError,
    )
    from lora_jax.serving.bank import Bank as Bank
    from lora_jax.serving.slot_table import Lease as Lease, NoSlotFree as NoSlotFree
    from lora_jax.sharding.layout import Layout as Layout, lay_out as lay_out
    from lora_jax.sharding.mesh import make_mesh as make_mesh
    from lora_jax.transform.adapt import Adapted as Adapted, adapt as adapt
    from lora_jax.transform.discover import discover as discover
    from lora_jax.transform.placement import Frozen as Frozen
    from lora_jax.transform.prune import prune as prune, ranks as ranks
    from lora_jax.transform.summary import summary as summary
    from lora_jax.transform.target_patterns import layers as layers
    from lora_jax.variant import (
        Base as Base,
        Factors as Factors,
        Suggested as Suggested,
        TrainingWarning as TrainingWarning,
        Variant as Variant,
    )

__version__ = "0.1.0"

_NAMES = {
    "lora_jax.adapters.adapter_file": (
        "load_adapter",
        "load_seen",
        "save_adapter",
        "save_seen",
        "start_from",
    ),
    "lora_jax.adapters.base_digest": ("base_digests",),
    "lora_jax.adapters": ("distance",),
    "lora_jax.adapters.combination": ("Combined", "combine_adapters"),
    "lora_jax.contract": ("check",),
    "lora_jax.interchange.load_loralib": ("load_loralib",),
    "lora_jax.interchange.load_peft": ("PeftReader", "load_peft"),
    "lora_jax.interchange.names": ("names_from_patterns",),
    "lora_jax.interchange.save_loralib": ("save_loralib",),
    "lora_jax.interchange.save_peft": ("save_peft",),
    "lora_jax.interchange.save_plain_lora": ("save_plain_lora",),
    "lora_jax.quantization.quantize": ("NF4", "Int8"),
    "lora_jax.serving.adapter_store": ("AdapterStore", "UnknownAdapterError"),
    "lora_jax.serving.bank": ("Bank",),
    "lora_jax.serving.slot_table": ("Lease", "NoSlotFree"),
    "lora_jax.sharding.layout": ("Layout", "lay_out"),
    "lora_jax.sharding.mesh": ("make_mesh",),
    "lora_jax.transform.adapt": ("Adapted", "adapt"),
    "lora_jax.transform.discover": ("discover",),
    "lora_jax.transform.placement": ("Frozen",),
    "lora_jax.transform.prune": ("prune", "ranks"),
    "lora_jax.transform.summary": ("summary",),
    "lora_jax.transform.target_patterns": ("layers",),
    "lora_jax.base": ("Uses", "WeightUse"),
    "lora_jax.variant": ("Base", "Factors", "Suggested", "TrainingWarning", "Variant"),
}
"""The public names, by the file that has them."""
_FILES = {name: file for file, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # which would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _FILES:
            raise AttributeError(f"module 'lora_jax' has no attribute {name!r}")
        value = getattr(importlib.import_module(_FILES[name]), name)
        globals()[name] = value  # so that this is asked once
        return value


def __dir__() -> list[str]:
    return sorted(("__version__", "ABSENT", "combine", "from_nnx", "partition", *_FILES))


compiler_faults.cure()
