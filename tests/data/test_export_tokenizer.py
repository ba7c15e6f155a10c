"""Exported tokenizers give the ids of the published ones."""

import pytest

from lora_jax.data import load_tokenizer
from lora_jax.data.tokenizing.tokenize import export_tokenizer

gguf = pytest.importorskip("gguf")
from gguf_tokenizers import TEXTS, write_bytes, write_sentencepiece  # noqa: E402


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_tokenizer_of_a_gguf_file_becomes_files(kind, tmp_path):
    path = tmp_path / "model.gguf"
    if kind == "bytes":
        write_bytes(path, "gpt-2")
    else:
        write_sentencepiece(path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text('{"model_type": "llama"}')
    export_tokenizer(path, tmp_path / "out")
    before, after = load_tokenizer(path), load_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert after.backend.encode(text).ids == before.backend.encode(text).ids
    for name in ("bos_id", "eos_id", "pad_id", "starts_with_bos"):
        assert getattr(after, name) == getattr(before, name), name


def test_the_files_of_a_folder_are_copied_and_no_other(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    names = (
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "additional_chat_templates/a.jinja",
    )
    for name in (*names, "model.safetensors", "train.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    out.mkdir()
    export_tokenizer(source, out)
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert found.keys() == set(names)
    assert all(path.read_text() == name for name, path in found.items())
