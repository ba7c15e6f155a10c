"""Tables that are also the head: PEFT has two modules of them, with the same numbers."""

import math
from collections.abc import Iterable, Mapping

from lora_jax.interchange.matrices import Matrix
from lora_jax.interchange.names import Names
from lora_jax.interchange.peft_folder import MODEL
from lora_jax.interchange.source import Source, TensorNames
from lora_jax.methods.peft_lora import HEAD
from lora_jax.peft_format import Peft, Settings


def head_of(names: Names, path: str) -> str:
    """The module of the head that is also the table `path`.

    Raises:
      ValueError: it has no known name.
    """
    if names.head is None:
        raise ValueError(
            f"'{path}' is also the head, of which these names say no module (names_from_patterns "
            "takes head='lm_head'); merge the weights instead"
        )
    return names.head


def head_adapters(stored: Iterable[tuple[Matrix, Peft]], names: Names) -> dict[str, Peft]:
    """LoRA of the heads whose tables have it, by module: the transposes of the tables'.

    Raises:
      ValueError: a head has no known name.
    """
    return {
        head_of(names, each.path): peft._replace(
            tensors={HEAD[name]: x.T for name, x in peft.tensors.items()}
        )
        for each, peft in stored
        if each.tied and of_both(peft.tensors)
    }


def of_both(tensors: Mapping[str, object]) -> bool:
    """Whether PEFT has such an adapter of a table for its head, too: LoRA, and not DoRA."""
    return tensors.keys() == HEAD.keys()


def check_scales(source: Source, found: TensorNames, settings: Mapping[str, Settings]) -> None:
    """Raise a ValueError if the adapter of a head has another scale than that of its table."""
    each = ((m, suffix, tensor) for m, x in found.adapters.items() for suffix, tensor in x.items())
    modules = {tensor: (module, HEAD[suffix]) for module, suffix, tensor in each if suffix in HEAD}
    for name, table in found.heads.items():
        if table in modules:
            module, suffix = modules[table]
            head = name.removeprefix(MODEL).removesuffix(f".{suffix}")
            if not math.isclose(_scale(source.settings(head)), _scale(settings[module])):
                raise ValueError(f"'{head}' has another scale than '{module}', its table")


def _scale(settings: Settings) -> float:
    """LoRA's, NaN if there is none. The head has the factors of the table, whatever its rank."""
    try:
        rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (ArithmeticError, TypeError, ValueError):
        return math.nan
