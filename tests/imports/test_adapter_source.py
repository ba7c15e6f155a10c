"""Adapters in folders and on a Hub, which a server on this machine stands in for."""

import json
import types
from typing import Any

import hub_stand_in
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import quickstart
from experiments.imports.adapter_source import find, read_adapter
from experiments.setup.config import parse
from lora_jax.models.families.bert import BertConfig


@pytest.fixture
def adapter(tmp_path):
    """A folder with the two files, the head of an export, and one that nobody asks for."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for name in ("adapter_model.safetensors", "head.safetensors"):
        save_file({f"{name}.a": np.ones(2, np.float32)}, folder / name)
    (folder / "optimizer.pt").write_bytes(b"large")
    return folder


@pytest.fixture
def hub(adapter, tmp_path, monkeypatch):
    """What the Hub is asked, with no file of this machine's own cache."""
    pickled, other = tmp_path / "pickled", tmp_path / "other"
    for folder in (pickled, other):
        folder.mkdir()
    (pickled / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    (other / "README.md").write_text("no adapter")
    monkeypatch.chdir(tmp_path)
    folders = {"me/good": adapter, "me/pickled": pickled, "me/other": other}
    with hub_stand_in.serving({**folders, "me/gated": "GatedRepo"}) as (address, asked):
        hub_stand_in.reach(monkeypatch, address, tmp_path / "cache")
        yield asked


def test_a_repository(hub, adapter):
    source = find("me/good@v1")
    assert (source.given, source.commit) == ("me/good@v1", hub_stand_in.COMMIT)
    names = sorted(path.name for path in source.path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
    assert sorted(source.digests()) == names
    for name, digest in source.digests().items():
        assert (source.path / name).read_bytes() == (adapter / name).read_bytes()
        assert len(digest) == 64
    assert not [each for each in hub if "optimizer" in each]


def test_a_folder_goes_before_a_repository(hub, adapter, tmp_path):
    (tmp_path / "me").mkdir()
    adapter.rename(tmp_path / "me" / "good")
    source = find("me/good")
    assert source.commit is None and source.path.name == "good" and not hub


@pytest.mark.filterwarnings("ignore:No files matched")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("me/pickled", "it has adapter_model.bin alone, a pickle, which is not downloaded: conver"),
        ("me/other", "has no adapter_config.json: it is not an adapter of Hugging Face PEFT"),
        ("me/gated", r"no such folder, and the Hub does not have it for you \(GatedRepoError: "),
        ("me/none", r"\(RepositoryNotFoundError: .*make sure you are authenticated"),
        ("me/good@v2", r"\(RevisionNotFoundError: "),
        ("me/go--od", r"\(HFValidationError: "),
        ("none", "--from=none: no such folder"),
        ("", "--from=: no such folder"),
    ],
)
def test_adapters_that_are_not_to_be_had(hub, given, said):
    with pytest.raises(FileNotFoundError, match=said) as caught:
        find(given)
    assert str(caught.value).startswith(f"--from={given}") and "\n" not in str(caught.value)
    assert not [each for each in hub if each.endswith(".bin")]


def test_without_a_network(tmp_path, monkeypatch):
    hub_stand_in.reach(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"^--from=me/good: .*\(LocalEntryNotFoundError: .*connection"
    ):
        find("me/good")


def test_a_head_that_reads_a_mean_is_not_left_out(adapter):
    """Of a config whose head reads the first token: its head would be drawn anew."""
    config = quickstart.get_config()
    config.model.pool = "cls"
    texts = types.SimpleNamespace(shape=BertConfig(), boundaries=(8,))
    model: Any = types.SimpleNamespace(model=lambda key: (None, {}), texts=texts)
    with pytest.raises(ValueError, match=r"its head .* reads the mean .*: --config.model.pool=mea"):
        read_adapter(find(str(adapter)), parse(config.to_dict()), model)


def test_folders_that_are_none(adapter, tmp_path):
    (tmp_path / "adaptor").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such folder; nearest in .*: 'adapter'$"):
        find(str(tmp_path / "adapte"))
    with pytest.raises(FileNotFoundError, match=r"json: the adapters in it: adapter$"):
        find(str(tmp_path))
    with pytest.raises(ValueError, match=r"adapter_config.json is a file of PEFT: name its folder"):
        find(str(adapter / "adapter_config.json"))
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"gguf is neither .* microsoft/LoRA \(.safetensors, .pt"):
        find(str(tmp_path / "adapter.gguf"))
    (tmp_path / "record.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="it is a run's, which needs no import"):
        find(str(tmp_path))
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="corrupt or truncated"):
        find(str(adapter))
