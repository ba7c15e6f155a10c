"""tensorflow-datasets without TensorFlow, on small files in the place of the official downloads."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import official
import pytest
from one_line import refuses

from lora_jax.data import load_task
from lora_jax.data.sources import tfds, tsv
from lora_jax.data.tasks import SPECS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What a process of its own reads, where a stand-in for TensorFlow waits to be imported."""
    root = tmp_path_factory.mktemp("tfds")
    trap = root / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("__version__ = '9.0.0'\n")
    env = {
        **os.environ,
        "XDG_CACHE_HOME": str(root / "cache"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(root / "trap")]),
    }
    command = [sys.executable, str(ROOT / "tests" / "support" / "read_tfds.py"), str(root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_tensorflow_is_not_imported(read):
    modules = set(json.loads((read / "modules.json").read_text()))
    assert {"tensorflow_datasets", "array_record"} <= modules  # otherwise this test shows nothing
    assert "tensorflow" not in modules


@pytest.mark.parametrize("name", [*SPECS, "prepared"])
def test_the_same_texts_labels_and_ids_as_from_the_layout(read, tmp_path, name):
    seen = json.loads((read / "seen.json").read_text())[name]
    name = "glue/cola" if name == "prepared" else name
    task = load_task(name, "tsv", official.write(tmp_path, official.LAYOUT[name]()))
    parts = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
    assert parts.keys() == seen.keys()
    for part, (texts, seconds, labels, ids) in seen.items():
        assert list(parts[part].texts) == texts
        assert (parts[part].second_texts and list(parts[part].second_texts)) == seconds
        assert (parts[part].labels if labels is None else parts[part].labels.tolist()) == labels
        assert list(parts[part].ids) == ids


def test_what_cannot_be_read_is_named(read):
    """The small file under the official name too, whose checksum tensorflow-datasets knows."""
    said = json.loads((read / "refused.json").read_text())
    expected = {
        "incomplete": "FileNotFoundError: .*, msr_paraphrase_test.txt, data_mrpc_dev_ids.tsv;",
        "absent": "FileNotFoundError: .*neither super_glue/cb as ArrayRecords nor .*, CB.zip;",
        "other content": "ValueError: .*cannot prepare glue/rte.*[Cc]hecksum",
    }
    assert [name for name, each in expected.items() if not re.match(each, said[name])] == []


def test_without_a_network_the_way_out_is_told_at_once(monkeypatch):
    asked = []

    def resolve(host, port):
        asked.append(host)
        raise OSError(-2, "Name or service not known")

    infos = {
        "https://one.example/glue/RTE.zip": SimpleNamespace(filename="RTE.zip"),
        "https://two.example/CoLA.zip": SimpleNamespace(filename="CoLA.zip"),
    }
    builder = SimpleNamespace(url_infos=infos)
    monkeypatch.setattr(tfds.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(tfds.urllib.request, "getproxies", dict)
    assert refuses(".", tfds._check_reachable, "glue/rte", builder, SPECS["glue/rte"]) == (
        "tensorflow-datasets cannot download glue/rte: no connection to one.example (Name or "
        "service not known); set data.folder to a folder with RTE.zip, or " + tsv.ways("glue/rte")
    )
    monkeypatch.setattr(tfds.urllib.request, "getproxies", lambda: {"https": "proxy"})
    tfds._check_reachable("glue/rte", builder, SPECS["glue/rte"])
    assert asked == ["one.example"]


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "array_record", "importlib_resources"])
def test_a_missing_extra_gets_the_command(monkeypatch, missing):
    real = tfds.importlib.import_module

    def importing(name):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name) if name.startswith("lora_jax") else None

    monkeypatch.setattr(tfds.importlib, "import_module", importing)
    with pytest.raises(ModuleNotFoundError) as error:
        load_task("glue/cola", "tfds")
    needed = f"source 'tfds' needs {missing}: pip install \"lora-jax[tfds]\""
    assert str(error.value) == f"{needed}; {tsv.ways('glue/cola')}"


def test_prepared_data_that_is_damaged_is_named(monkeypatch, tmp_path):
    """Whatever tensorflow-datasets raises of it: none of its classes is public."""

    def damaged(*_):
        raise KeyError("what\nelse")

    for version in ("1.0.9", "9.0.0", "10.0.0"):  # the last one is the newest
        prepared = tmp_path / "glue" / "cola" / version
        prepared.mkdir(parents=True)
        (prepared / "dataset_info.json").write_text("[" * 9999)
    library = SimpleNamespace(builder_from_directory=damaged)
    monkeypatch.setattr(tfds, "_library", lambda name: library)
    spec = SPECS["glue/cola"]
    said = r"10\.0\.0 cannot be read: KeyError: "
    refuses(said, tfds.find, "glue/cola", spec, tmp_path, tmp_path)
    bare = dataclasses.replace(spec, archives=())
    refuses("lacks mine/a; take data.source 'tsv'", tfds.find, "mine/a", bare, None, tmp_path)
    builder = SimpleNamespace(data_dir=prepared, as_data_source=damaged)
    said = r"10\.0\.0: train cannot be read: KeyError: "
    refuses(said, tfds.read_part, builder, spec.parts[0])
    rows = [{"idx": 0, "sentence": b"\xff", "label": 0}]

    class Source(list):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    builder = SimpleNamespace(data_dir=prepared, as_data_source=lambda split: Source(rows))
    refuses("train cannot be read: UnicodeDecodeError", tfds.read_part, builder, spec.parts[0])
    rows[0]["sentence"] = b"good"
    (record,) = tfds.read_part(builder, spec.parts[0])
    assert (record.values, record.label) == ({"sentence": "good"}, 0)
