"""What a parameter is called in a torch model: one tensor for each layer of a stacked parameter.

`names_of` gives the names of the models of `lora_jax.models`, as transformers has them, and
`names_from_patterns` those of any other model.
"""

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from lora_jax.models.families import family_of, places
from lora_jax.models.parts.family import LEAF, Place
from lora_jax.partition import matches

SHARED = "base_model."
MODEL = f"{SHARED}model."
"""The prefix of the modules' names in PEFT's files."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What a model's parameters are called in torch."""

    place: Callable[[str, int], Place | None]
    """The tensor of one layer of a parameter, from its path; None for one without a name."""
    stacked: Callable[[str], bool]
    """Whether a parameter has an axis of layers in front, each of which is a tensor in torch."""
    head: str | None = None
    """The module of torch that is the head, where its weight is also a table; None if not known."""
    unwrapped: frozenset[str] = frozenset()
    """The modules whose weight torch's model reads by itself: an adapter there does nothing."""


class Row(NamedTuple):
    """One layer of a parameter."""

    path: str
    layer: int
    place: Place

    @property
    def module(self) -> str:
        return self.place.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """`weight` or `bias`."""
        return self.place.name.rpartition(".")[2]


def names_from_patterns(patterns: Mapping[str, str], head: str | None = None) -> Names:
    """Names of a user's own model, from patterns of paths to names of torch modules.

    {"layers/query/kernel": "encoder.layer.{layer}.attention.self.query",
     r"blocks/(\\d+)/up/kernel": "blocks.{0}.mlp.up"}

    A pattern is a regular expression that matches a whole path, or its tail after a `/`; the first
    that matches decides. `{layer}` is the number of a layer of a stacked parameter, `{0}` the
    pattern's first group. Matrices count as torch's Linear, which stores (out, in); what is called
    `embedding` and vectors are stored as they are. A bias is found beside its weight. A template
    that ends in `.weight` or `.bias` names the tensor itself, which is then stored as it is here.
    `head` is the module of a head whose weight is also a table, such as `lm_head`.

    Raises:
      ValueError: a pattern or a name is not text; later, for a name, a template has another field.
    """

    texts = [*patterns, *patterns.values()] if isinstance(patterns, Mapping) else [patterns]
    if not all(isinstance(each, str) for each in texts):
        raise ValueError(
            "names_from_patterns takes a dict of texts, such as {'layers/query/kernel': "
            f"'encoder.layer.{{layer}}.query'}}, not {textwrap.shorten(repr(patterns), 60)}"
        )

    def found(path: str) -> tuple[str, str, str] | None:
        before, _, leaf = path.rpartition("/")
        beside = [path, *(f"{before}/{each}" for each in LEAF)] if leaf == "bias" else [path]
        for pattern, template in patterns.items():
            for each in beside:
                if matches(pattern, each):
                    return pattern, template, each
        return None

    def place(path: str, layer: int) -> Place | None:
        return None if (one := found(path)) is None else _place(*one, path, layer)

    def stacked(path: str) -> bool:
        return (one := found(path)) is not None and "{layer" in one[1]

    return Names(place, stacked, head)


def _place(pattern: str, template: str, matched: str, path: str, layer: int) -> Place:
    found = re.fullmatch(rf"(?:.*/)?(?:{pattern})", matched)
    groups = found.groups() if found else ()
    try:
        module = template.format(*groups, layer=layer)
    except (IndexError, KeyError) as error:
        raise ValueError(
            f"'{template}' has a field {error} that '{pattern}' does not give; "
            "there are {layer} and, for groups, {0}, {1} ..."
        ) from None
    leaf = path.rpartition("/")[2]
    if module.endswith((".weight", ".bias")):
        beside = path != matched
        return Place(f"{module.rpartition('.')[0]}.bias" if beside else module, False, None)
    kind = LEAF.get(leaf, "weight")
    return Place(f"{module}.{kind}", kind == "weight" and leaf not in ("embedding", "scale"), None)


def rows(names: Names, params: Mapping[str, Any]) -> Iterable[Row]:
    """The layers of all parameters that have a name, from arrays (or shapes) by path."""
    for path, value in params.items():
        layers = jax.tree.leaves(value)[0].shape[0] if names.stacked(path) else 1
        for layer in range(layers):
            if (place := names.place(path, layer)) is not None:
                yield Row(path, layer, place)


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
