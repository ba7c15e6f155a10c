"""Adapters read from a folder: none is answered for by a head that nobody has trained."""

import jax
import numpy as np
import pytest
import small_model
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.adapter_loader import AdapterLoader
from experiments.serving.base_model import load_encoder
from lora_jax.files.tree_file import save_tree
from lora_jax.interchange.families import names_of

EXAMPLE = (np.zeros((1, 8), np.int32),) * 3


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """Of adapters on an encoder whose file has no head."""
    root = tmp_path_factory.mktemp("headless")
    model = small_model.write(root / "bert")
    weights = load_file(model / "model.safetensors")
    body = {name: x for name, x in weights.items() if not name.startswith("classifier")}
    save_file(body, model / "model.safetensors", metadata={"format": "pt"})
    base = load_encoder(str(model), "float32", ("bad", "good"), "mean")
    query, head = "query/kernel", "classifier/kernel"
    for name, targets, also in (
        ("whole", query, "classifier/.*"),
        ("none", query, ()),
        ("adapted", [query, head], "classifier/bias"),
    ):
        adapted = lj.adapt(base.train, variants.make("lora", rank=2), targets, also_train=also)
        trainable, frozen = adapted.init(jax.random.key(1), base.params, *EXAMPLE)
        lj.save_peft(root / "adapters" / name, trainable, frozen, names_of(base.shape))
    return AdapterLoader(base, AdapterFolder(root / "adapters"))


def test_an_adapter_with_the_whole_head_is_read(loader):
    (trainable, _), _ = loader("whole")
    assert {*trainable["params"]} == {"classifier/kernel", "classifier/bias"}


def test_a_file_alone_imports_nothing(loader, tmp_path, monkeypatch):
    """Its own config names a module, which a folder's config.json alone may."""
    (tmp_path / "surprise.py").write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "stranger").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for place, config in enumerate(
        (
            {"variant": {"name": "surprise.it"}, "targets": ["query/kernel"]},
            {"variant": {"name": "lora"}, "targets": [["query/kernel", {"name": "surprise.it"}]]},
        )
    ):
        folder = tmp_path / "stranger" / str(place)
        save_tree(folder, {"a": np.ones(1)}, {"config": config})
        other = AdapterLoader(loader._base, AdapterFolder(tmp_path / "stranger"))
        with pytest.raises(ValueError, match=r"a variant of somebody's own, surprise\.it"):
            other(str(place))


@pytest.mark.parametrize("name", ["none", "adapted"])
def test_a_head_that_nobody_has_trained_is_refused(loader, name):
    with pytest.raises(ValueError, match="the adapter has no 'classifier/kernel', nor"):
        loader(name)
