"""The config.json of a model that was made from a published one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.models.published.weight_files import find_gguf, read_json

_GONE = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "num_labels", "_num_labels")
"""Settings of a source that do not hold for what is made from it."""


def write_config(
    folder: Path, config: Any, source: str | Path | None, changes: Mapping[str, Any]
) -> None:
    """Write a config.json: the source's own, with what differs from it, and with `changes`.

    Args:
      config: the model's own, such as a `BertConfig`.
      source: the folder or GGUF file that the model was made from, if there is one. Settings that
        our models do not read are kept from its config.json.
    """
    content = config.to_json()
    if source is not None and find_gguf(source) is None:
        published = read_json(Path(source) / "config.json")
        before = type(config).from_json(published).to_json()
        differing = {name: value for name, value in content.items() if before[name] != value}
        kept = {name: value for name, value in published.items() if name not in _GONE}
        content = kept | differing
    text = json.dumps(content | dict(changes), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
