"""The digest of what a model's folder says beside its weights."""

import shutil

import pytest

from lora_jax.models.published.location import READING_FILES, reading_digest, unchanged


def test_every_change_of_a_file_is_another_digest(tmp_path):
    found = [reading_digest(tmp_path)]
    for name in READING_FILES:
        (tmp_path / name).write_bytes(b"1")
        found.append(reading_digest(tmp_path))
    (tmp_path / "config.json").write_bytes(b"2")
    found.append(reading_digest(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "model.safetensors")  # not one of them
    found.append(reading_digest(tmp_path))
    assert len(set(found)) == len(found)
    (tmp_path / "model.safetensors").unlink()
    assert reading_digest(tmp_path) == found[-1]
    assert reading_digest(tmp_path / "a.gguf") == found[0]  # such a file holds all of it


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_changes_while_it_is_read_is_seen(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    for each in ("model.safetensors", "config.json"):
        (folder / each).write_bytes(b"1")
    with unchanged(folder):
        (folder / name).read_bytes()
    with (
        pytest.raises(ValueError, match="its files were changed while they were"),
        unchanged(folder),
    ):
        (folder / name).write_bytes(b"22")
    shutil.copytree(folder, tmp_path / "other")
    with (
        pytest.raises(ValueError, match="its files were changed while they were"),
        unchanged(folder),
    ):
        folder.rename(tmp_path / "aside")  # and back, as another folder of the same content
        (tmp_path / "other").rename(folder)
