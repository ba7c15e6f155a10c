"""An index joins several weight files to one, names a tensor once, and never leaves its folder."""

import hashlib
import json

import pytest
from encoder_checkpoints import assert_same, checkpoint, load
from safetensors.numpy import load_file, save_file

from lora_jax.models.published.weight_files import weight_files, weights_digest


def test_several_files_with_an_index_equal_one(tmp_path):
    one = checkpoint(tmp_path / "one")
    several = checkpoint(tmp_path / "several")
    tensors = load_file(several / "model.safetensors")
    (several / "model.safetensors").unlink()
    shards = {"a.safetensors": {}, "b.safetensors": {}, "c.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        list(shards.values())[i % 3][name] = tensor
    for file, part in shards.items():
        save_file(part, several / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (several / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(several).model, load(one).model)
    content = b"".join((several / file).read_bytes() for file in sorted(shards))
    assert weights_digest(several) == hashlib.sha256(content).hexdigest()
    assert (
        weights_digest(one) == hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    )

    (several / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors: no such file, but .*index"):
        load(several)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    folder = checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    one = "bert.embeddings.LayerNorm.weight"
    save_file(tensors, folder / "a.safetensors")
    save_file({one: tensors[one] + 1}, folder / "b.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")}))
    load(folder)
    names = {**dict.fromkeys(tensors, "a.safetensors"), one: "b.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(
        ValueError, match=rf"b\.safetensors: tensor '{one}' is there twice: it is also in .*a\."
    ):
        load(folder)


def sharded(index, *names):
    """An index that names files, and what reading it gives: the files, or the error."""
    index.parent.mkdir(parents=True, exist_ok=True)
    content = {"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}
    index.write_text(json.dumps(content))
    return weight_files(index.parent)


@pytest.mark.parametrize("kind", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "name",
    [
        "../../outside.safetensors",
        "../model/inside.safetensors",
        "sub/../../outside.safetensors",
        "sub/../inside.safetensors",
        "/etc/hosts",
        "..\\..\\outside.safetensors",
        "C:\\outside.safetensors",
        "..",
        "link.safetensors",
        "folder/outside.safetensors",
        "circle.safetensors",
        "",
        " ",
        "a\0b",
        "\ud800",
        3,
        None,
        ["inside.safetensors"],
        {"a": 1},
    ],
)
def test_an_index_names_nothing_outside_its_folder(tmp_path, kind, name):
    index = tmp_path / "deep" / "model" / kind
    for file in (tmp_path / "outside.safetensors", index.parent / "inside.safetensors"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (index.parent / "sub").mkdir()
    (index.parent / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (index.parent / "folder").symlink_to(tmp_path)
    (index.parent / "circle.safetensors").symlink_to("circle.safetensors")
    with pytest.raises(ValueError, match=r"index\.json: ") as error:
        sharded(index, "inside.safetensors", name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert sharded(index, "inside.safetensors") == [index.parent / "inside.safetensors"]


def test_an_index_may_name_files_below_its_folder_and_the_blobs_of_the_hub(tmp_path):
    """The Hub's cache: MODEL/snapshots/REVISION/FILE is a link to MODEL/blobs/HASH."""
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "1234"
    for place, up in ((snapshot, "../.."), (snapshot / "sub", "../../..")):
        place.mkdir(parents=True)
        (model / "blobs").mkdir(exist_ok=True)
        (model / "blobs" / "hash").write_bytes(b"")
        (place / "a.safetensors").symlink_to(f"{up}/blobs/hash")
        index = place / "model.safetensors.index.json"
        assert sharded(index, "a.safetensors") == [place / "a.safetensors"]
        index.rename(model / "blobs" / "index")
        index.symlink_to(f"{up}/blobs/index")
        assert weight_files(place) == [place / "a.safetensors"]
        index.unlink()
    assert sharded(snapshot / "model.safetensors.index.json", "sub/a.safetensors")
    (tmp_path / "alias").symlink_to(snapshot)  # the user's own link is no published name
    assert len(weight_files(tmp_path / "alias")) == 1
    for target in ("../../../blobs/hash", "../../other"):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for outside in (tmp_path / "blobs" / "hash", model / "other"):
            outside.write_bytes(b"")
        link = snapshot / "b.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(ValueError, match=r"'b\.safetensors' leads out of the folder"):
            sharded(snapshot / "model.safetensors.index.json", "b.safetensors")
