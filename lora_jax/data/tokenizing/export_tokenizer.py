"""Give a folder the tokenizer of a published model, as transformers reads it."""

import json
import shutil
from pathlib import Path

from lora_jax.data.tokenizing.gguf_tokenizer import from_gguf, gguf_token_id
from lora_jax.files.gguf_file import SPECIAL_TOKENS, GgufFile
from lora_jax.models.published.location import TOKENIZER_FILES
from lora_jax.models.published.weight_files import find_gguf

_WITH_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "tokenizer.model")
_TEMPLATES = "additional_chat_templates"


def has_tokenizer(source: Path) -> bool:
    """Whether there is a tokenizer in the folder or the GGUF file of a published model."""
    return find_gguf(source) is not None or any((source / n).is_file() for n in _WITH_WORDS)


def export_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copy the tokenizer's files, chat templates among them; of a GGUF file, write such files.

    Args:
      source: the folder or the GGUF file of the published model.
      folder: an existing one; files of these names in it are replaced.
    """
    source, folder = Path(source), Path(folder)
    if not (source / "tokenizer.json").is_file() and (gguf := find_gguf(source)) is not None:
        _write_gguf(GgufFile(gguf), folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, dirs_exist_ok=True)


def _write_gguf(file: GgufFile, folder: Path) -> None:
    backend = from_gguf(file)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, theirs in SPECIAL_TOKENS.items():
        if (number := gguf_token_id(file, theirs)) is not None:
            settings[f"{name}_token"] = backend.id_to_token(number)
    if (template := file.value("tokenizer.chat_template", None)) is not None:
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
