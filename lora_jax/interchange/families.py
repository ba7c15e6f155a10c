"""The torch names of the models of `lora_jax.models`, as transformers has them."""

from collections.abc import Iterable
from typing import Any

from lora_jax.interchange.names import Names
from lora_jax.interchange.peft_folder import MODEL
from lora_jax.models.families import family_of, places
from lora_jax.models.parts.family import Place


def names_of(config: Any, head: bool = True) -> Names:
    """The names of a classifier's or decoder's parameters, from the config of its model.

    They are those of transformers' classes with a head, `BertForSequenceClassification` or
    `LlamaForCausalLM`; without `head`, those of `BertModel` or `LlamaModel`. A classifier that
    averages its tokens (`pool="mean"`) has the names of one that takes the first token, which
    computes something else: transformers has no class for it.
    """
    before = "" if head else family_of(config).prefix

    def place(path: str, layer: int) -> Place | None:
        try:
            found = places(path, config)[layer]
        except ValueError:
            return None
        return found._replace(name=found.name.removeprefix(before))

    own = place("head/kernel", 0) if head else None
    module = own and own.name.removesuffix(".weight")
    relative = place("embeddings/relative/embedding", 0)  # DeBERTa's, in which nothing is looked up
    unwrapped = {relative.name.removesuffix(".weight")} if relative else ()
    return Names(place, lambda path: path.startswith("layers/"), module, frozenset(unwrapped))


def names_in(config: Any, tensors: Iterable[str]) -> Names:
    """The names of the class, with a head or without, that an adapter's tensors belong to.

    Args:
      config: of the model, as for `names_of`.
      tensors: their names in PEFT's file.
    """
    return names_of(config, head=of_class_with_head(config, tensors))


def of_class_with_head(config: Any, tensors: Iterable[str]) -> bool:
    """Whether an adapter's tensors, as for `names_in`, are named as in a class with a head."""
    before = f"{MODEL}{family_of(config).prefix}"
    return any(name.startswith(before) for name in tensors)
