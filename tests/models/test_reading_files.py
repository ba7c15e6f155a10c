"""The digest of what a model's folder says beside its weights."""

from lora_jax.models.published.reading_files import FILES, reading_digest


def test_every_change_of_a_file_is_another_digest(tmp_path):
    found = [reading_digest(tmp_path)]
    for name in FILES:
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
