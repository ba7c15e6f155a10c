"""What a method's file says in words: its idea, and its paper."""

import re
import sys

from lora_jax.variant import Variant

ARXIV = re.compile(r"\barxiv(?:\.org/abs/|[:\s]+)(\d{4}\.\d{4,5})", re.IGNORECASE)
OPENREVIEW = re.compile(r"\bopenreview\s+(\w+)")


def idea(kind: type[Variant]) -> str:
    """The first line of the module's docstring, without the method's name and the full stop."""
    first = _docstring(kind).partition("\n")[0]
    return first.partition(": ")[2].rstrip(".") or first.rstrip(".")


def paper(kind: type[Variant]) -> str:
    """The address of the first paper that the module's docstring names; empty if there is none."""
    said = _docstring(kind)
    if found := ARXIV.search(said):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := OPENREVIEW.search(said):
        return f"https://openreview.net/forum?id={found[1]}"
    return ""


def _docstring(kind: type[Variant]) -> str:
    return (sys.modules[kind.__module__].__doc__ or "").strip()
