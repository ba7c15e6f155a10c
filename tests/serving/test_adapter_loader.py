"""Adapters read from a folder: none is answered for by a head that nobody has trained."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_model
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from configs import quickstart
from experiments.runs.head_file import HEAD_FILE, save_head
from experiments.serving.adapter_folder import AdapterFolder, AdapterLoader
from experiments.serving.base_model import load_encoder
from experiments.setup import from_config
from experiments.setup.config import fill, parse
from lora_jax.files.json_text import plain
from lora_jax.files.tree_file import save_tree
from lora_jax.interchange.names import names_of
from lora_jax.partition import flatten
from lora_jax.records import run_record

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


@pytest.mark.parametrize(
    ("pool", "task", "with_file", "reads"),
    [
        ("mean", "SEQ_CLS", False, "cls"),
        ("cls", "FEATURE_EXTRACTION", True, "mean"),
        ("cls", "SEQ_CLS", False, None),
        ("mean", "FEATURE_EXTRACTION", True, None),
        ("cls", None, False, None),
    ],
)
def test_a_peft_head_that_reads_something_else_is_refused(
    loader, tmp_path, pool, task, with_file, reads
):
    """A class of transformers reads the first token, and a file of its own holds a mean's head."""
    shutil.copytree(loader._folder.root / "whole", tmp_path / "other")
    config = tmp_path / "other/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": task}))
    base = dataclasses.replace(loader._base, pool=pool)
    if with_file:
        head = {
            name: flatten(base.params)[0][name] for name in ("classifier/kernel", "classifier/bias")
        }
        save_head(head, tmp_path / "other" / HEAD_FILE)
    other = AdapterLoader(base, AdapterFolder(tmp_path))
    if reads is None:
        other("other")
        return
    said = f"other: its head reads {reads}, and the server was started with --pool={pool}"
    with pytest.raises(ValueError, match=said):
        other("other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variant.name": "surprise"}, "unknown variant 'surprise'"),
        ({"variant.name": "surprise.it"}, r"a variant of somebody's own, surprise\.it"),
        ({"targets": [["query/kernel", {"name": "surprise.it"}]]}, "of somebody's own, surprise"),
        ({"targets": 5}, r"config\.targets"),
    ],
)
def test_a_file_alone_imports_nothing(loader, tmp_path, monkeypatch, changes, said):
    """Its own config is whole, and names a module, which a folder's config.json alone may."""
    (tmp_path / "surprise").mkdir()
    (tmp_path / "surprise" / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = quickstart.get_config("size=smoke").to_dict()
    config["variant"] |= {key[8:]: each for key, each in changes.items() if "." in key}
    config |= {key: each for key, each in changes.items() if "." not in key}
    save_tree(tmp_path / "adapters" / "stranger", {"a": np.ones(1)}, {"config": plain(config)})
    other = AdapterLoader(loader._base, AdapterFolder(tmp_path / "adapters"))
    with pytest.raises(ValueError, match=said):
        other("stranger")


def test_a_run_of_adalora_has_its_steps_and_the_classes_of_its_record(
    loader, tmp_path, monkeypatch
):
    steps, base, folder = 9, loader._base, tmp_path / "adapters" / "run"
    config = fill(quickstart.get_config("variant=adalora,size=smoke").to_dict())
    config |= {"targets": ["query/kernel"], "also_train": ["classifier/.*"]}
    config["model"]["pool"] = base.pool
    targets = from_config.make_targets(parse(config), steps)
    adapted = lj.adapt(base.train, None, targets, also_train="classifier/.*")
    trainable, frozen = adapted.init(jax.random.key(1), base.params, *EXAMPLE)
    lj.save_adapter(folder, trainable, frozen, {"config": plain(config)})
    (_, again), _ = AdapterLoader(base, AdapterFolder(folder.parent))("run")
    (shared,) = again.shared_by_group(trainable).values()
    assert shared.constants["budget"].shape == (steps + 1,)
    first = dataclasses.replace(base, pool="cls")
    with pytest.raises(ValueError, match="its head reads mean, and the server was started with"):
        AdapterLoader(first, AdapterFolder(folder.parent))("run")
    for names in (["bad", "good"], ["0", "1"]):  # other names for the same classes are fine
        monkeypatch.setattr(run_record, "read", lambda _, n=names: SimpleNamespace(label_names=n))
        AdapterLoader(base, AdapterFolder(folder.parent))("run")
    for names, said in (
        (["good", "bad"], "its classes are --labels=good,bad, in this order"),
        ([], "it predicts numbers, and the server's model has classes"),
    ):
        monkeypatch.setattr(run_record, "read", lambda _, n=names: SimpleNamespace(label_names=n))
        with pytest.raises(ValueError, match=said):
            AdapterLoader(base, AdapterFolder(folder.parent))("run")


class Replaced(AdapterFolder):
    """A folder in which the next of some versions takes the place of an adapter."""

    def __init__(self, root, versions, when):
        super().__init__(root)
        self.versions, self.when, self.looks = versions, when, 0

    def files(self, name):
        """Look up files, after they were replaced if it is time."""
        self.looks += 1
        if self.looks in self.when:
            shutil.rmtree(self.root / name)
            shutil.copytree(self.versions[self.looks % len(self.versions)], self.root / name)
        return super().files(name)


@pytest.mark.parametrize("when", [{2}, {3}, {3, 5}, set(range(2, 99))])
def test_a_digest_is_of_what_was_read_though_the_folder_changes_meanwhile(loader, tmp_path, when):
    source, name, versions = loader._folder.root / "whole", "adapter_model.safetensors", []
    for number in range(3):
        versions.append(shutil.copytree(source, tmp_path / f"version{number}"))
        weights = load_file(source / name)
        shifted = {key: x + number + 1 for key, x in weights.items()}
        save_file(shifted, versions[-1] / name, metadata={"format": "pt"})
    shutil.copytree(versions[1], tmp_path / "root" / "it")
    folder = Replaced(tmp_path / "root", versions, when)
    read = AdapterLoader(loader._base, folder)
    if len(when) > 9:
        with pytest.raises(ValueError, match="'it' changes while it is read"):
            read("it")
        return
    (trainable, _), digest = read("it")
    assert digest == AdapterFolder(tmp_path / "root").digest("it")
    (wanted, _), _ = AdapterLoader(loader._base, AdapterFolder(tmp_path / "root"))("it")
    jax.tree.map(np.testing.assert_array_equal, trainable, wanted)


def test_ranks_that_were_chosen_from_data_are_refused(loader, tmp_path):
    config = plain(fill(quickstart.get_config("variant=eva,size=smoke").to_dict()))
    config["model"]["pool"] = loader._base.pool
    save_tree(tmp_path / "adapters" / "eva", {"a": np.ones(1)}, {"config": config})
    with pytest.raises(
        ValueError, match=r"ranks were chosen from data, .* export it with --as=peft"
    ):
        AdapterLoader(loader._base, AdapterFolder(tmp_path / "adapters"))("eva")


@pytest.mark.parametrize("name", ["none", "adapted"])
def test_a_head_that_nobody_has_trained_is_refused(loader, name):
    with pytest.raises(ValueError, match="the adapter has no 'classifier/kernel', nor"):
        loader(name)
