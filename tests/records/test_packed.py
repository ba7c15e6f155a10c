"""Packed runs are read as their folders are, to the bit; damage is noticed; no kill loses a run."""

import contextlib
import dataclasses
import gzip
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_records import planted, write

from experiments.analysis import recorded_runs
from experiments.runs import finished_run, folder_lock, packing, predictions
from experiments.setup import config_files
from lora_jax.records import packed, run_record

LABELS = np.tile([0, 1], 10)


def with_config(folder, record):
    (folder / "config.json").write_text(json.dumps(record.config, indent=2) + "\n")


@pytest.fixture
def results(tmp_path):
    """Two methods, each of two seeds, and a failed run without metrics and predictions."""
    for method in ("lora", "dora"):
        for seed in range(2):
            folder = tmp_path / "runs" / method / str(seed)
            wrong = np.arange(20) < 3 + seed
            with_config(
                folder,
                planted(
                    folder, method, seed, LABELS, wrong, rate=1e-3, losses=(0.5, 0.1 / (seed + 3))
                ),
            )
    folder = tmp_path / "runs" / "bitfit" / "0"
    failed = write(folder, "glue", "variant=bitfit", {"matthews": 0.5}, status="failed", note="é")
    with_config(folder, failed)
    return tmp_path


def pack(results):
    return list(packing.pack_below(results))


def unpack(folder):
    return list(packing.unpack_below(folder))


def content(folder):
    """All that readers get of the runs below a folder."""
    assert recorded_runs.find_unfinished(folder) == []
    return [
        (each.folder, each.record, each.sealed, each.metrics(), exact(each.predictions()))
        for each in recorded_runs.find(folder)
    ]


def exact(parts):
    return {
        name: [None if each is None else (each.dtype, each.shape, each.tobytes()) for each in part]
        for name, part in parts.items()
    }


def files(folder):
    return {each: each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def test_packed_runs_are_read_as_folders_and_become_them_again(results):
    before, written = content(results), files(results)
    assert len(before) == 5 and len(written) == 4 * 4 + 2
    pack(results)
    small = files(results)
    assert {each.name for each in small} == {packed.RECORDS, packed.METRICS, packed.PREDICTIONS}
    assert content(results) == before
    assert content(results / "runs" / "lora") == before[3:]  # no such folder is there now
    pack(results)
    assert files(results) == small
    unpack(results / "runs" / "lora" / "1")  # one of them, and then the others
    assert content(results) == before
    assert [run.pack is None for run in recorded_runs.find(results)] == [False] * 4 + [True]
    unpack(results)
    assert content(results) == before
    for path, one in files(results).items():
        assert written.pop(path) == one or path.name == predictions.NAME
    assert not written
    pack(results)
    assert files(results) == small  # the same runs give the same bytes


def test_a_line_is_that_of_the_run_with_its_name_in_front(results):
    log = (results / "runs" / "lora" / "0" / "metrics.jsonl").read_text()
    record = json.loads((results / "runs" / "lora" / "0" / "record.json").read_text())
    pack(results)
    head = '{"run": "runs/lora/0", '
    lines = gzip.decompress((results / packed.METRICS).read_bytes()).decode().splitlines()
    own = [line.replace(head, "{", 1) for line in lines if line.startswith(head)]
    assert own == log.splitlines() and len(own) == 3
    records = map(json.loads, gzip.decompress((results / packed.RECORDS).read_bytes()).splitlines())
    assert {"run": "runs/lora/0", **record} in list(records)
    with np.load(results / packed.PREDICTIONS) as arrays:
        shared = [name for name in arrays.files if name.endswith("label")]
        assert shared == ["validation/label"]  # one array for all runs
        assert np.array_equal(arrays[shared[0]], LABELS)
        assert arrays["runs/lora/0/validation"].shape == (20, 2)


def test_labels_are_those_of_each_run(tmp_path):
    """Of some runs the same, of some others, of one none, and one has a part of its own."""
    rng, expected = np.random.default_rng(0), {}
    given = {
        "a/0": LABELS,
        "a/1": LABELS,
        "b/0": 1 - LABELS,
        "b/1": None,
        "c/0": LABELS.astype(float),
    }
    for name, labels in given.items():
        folder = tmp_path / name
        with_config(folder, write(folder, "glue", "", {"matthews": 0.5}))
        outputs = rng.standard_normal((20, 2)).astype("f")
        outputs[0, 0] = -0.0
        parts = {"validation": predictions.Predictions(outputs, labels)}
        if name == "a/1":
            parts["extra"] = predictions.Predictions(outputs[:3], LABELS[:3])
        predictions.write(folder, parts)
        expected[tmp_path / name] = exact(parts)
    pack(tmp_path)
    found = {run.folder: exact(run.predictions()) for run in recorded_runs.find(tmp_path)}
    assert found == expected


def test_each_study_is_packed_beside_its_registration(results):
    (results / "runs" / "lora" / "study.json").touch()
    before = [run.folder for run in recorded_runs.find(results)]
    pack(results)
    homes = {run.folder: run.pack.folder for run in recorded_runs.find(results) if run.pack}
    lora = results / "runs" / "lora"
    assert homes == {each: lora if lora in each.parents else results for each in before}
    assert [*homes] == before
    (lora / "part").mkdir()
    with pytest.raises(ValueError, match=rf"is a part of a study: give {lora}$"):
        pack(lora / "part")


def test_what_is_more_than_results_stays_a_folder(results):
    runs = results / "runs"
    (runs / "lora" / "0" / "adapter.safetensors").touch()
    (runs / "lora" / "1" / "record.json").unlink()
    _, said = pack(results)
    assert [run.folder for run in recorded_runs.find(results) if run.pack is None] == [
        runs / "lora" / "0"
    ]
    assert said.endswith("runs/lora/0 stays a folder: it also holds adapter.safetensors")
    assert (runs / "lora" / "1" / "config.json").exists()
    (ended,) = recorded_runs.find_unfinished(results)
    assert ended.folder == runs / "lora" / "1"


@pytest.mark.parametrize("name", ["record.json", "config.json", "metrics.jsonl", predictions.NAME])
def test_a_damaged_run_is_not_packed(results, name):
    path = results / "runs" / "lora" / "0" / name
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.001", b"0.002") if b"0.001" in whole else whole[:-30])
    assert path.read_bytes() != whole
    before = files(results)
    with pytest.raises(ValueError, match=r"runs/lora/0") as error:
        pack(results)
    assert "\n" not in str(error.value) and files(results) == before


def edited(path, made):
    path.write_bytes(gzip.compress(made(gzip.decompress(path.read_bytes()))))


DAMAGE = {
    "a digit of a record": (
        packed.RECORDS,
        lambda text: text.replace(b'"seconds": 1.0', b'"seconds": 1.5', 1),
    ),
    "a record's line is cut": (packed.RECORDS, lambda text: text[:-20]),
    "a record twice": (packed.RECORDS, lambda text: text + text.splitlines(True)[0]),
    "a record elsewhere": (packed.RECORDS, lambda text: text.replace(b"runs/lora/0", b"../lora/0")),
    "a digit of a metric": (
        packed.METRICS,
        lambda text: text.replace(b'"loss": 0.5', b'"loss": 0.4', 1),
    ),
    "a line of metrics is missing": (
        packed.METRICS,
        lambda text: b"".join(text.splitlines(True)[1:]),
    ),
    "a last line of metrics": (packed.METRICS, lambda text: b"".join(text.splitlines(True)[:-1])),
    "metrics of a run": (packed.METRICS, lambda text: b"".join(text.splitlines(True)[3:])),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_changed_text_is_noticed(checked, what):
    name, made = DAMAGE[what]
    before = (checked / name).read_bytes()
    edited(checked / name, made)
    assert gzip.decompress(before) != gzip.decompress((checked / name).read_bytes())
    with pytest.raises(ValueError, match=name) as error:
        content(checked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [packed.RECORDS, packed.METRICS, packed.PREDICTIONS])
def test_a_cut_or_changed_file_is_noticed(checked, name):
    whole = (checked / name).read_bytes()
    for part in (whole[:-9], whole[: len(whole) // 2], b""):
        (checked / name).write_bytes(part)
        with pytest.raises(ValueError, match=name) as error:
            content(checked)
        assert "\n" not in str(error.value)
    (checked / name).unlink()
    if name != packed.RECORDS:  # without it, nothing is packed there
        with pytest.raises(FileNotFoundError, match=name):
            content(checked)


@pytest.fixture
def checked(results):
    """Packed runs, whose records name the last check of their metrics."""
    for path in sorted(results.rglob("metrics.jsonl")):
        record = run_record.read(path.parent)
        assert record is not None
        last = path.read_text().splitlines()[-1]
        (path.parent / "record.json").unlink()
        check = json.loads(last)["crc32"]
        run_record.write(path.parent, dataclasses.replace(record, metrics_check=check))
    pack(results)
    return results


def test_a_run_that_is_there_twice_must_be_the_same(results):
    pack(results)
    unpack(results / "runs" / "lora")
    loose = {path: one for path, one in files(results).items() if "lora" in str(path)}
    pack(results)
    before = content(results)
    for path, one in loose.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one)
    assert content(results) == before
    path = results / "runs" / "lora" / "0" / "record.json"
    record = run_record.read(path.parent)
    path.unlink()
    run_record.write(path.parent, dataclasses.replace(record, note="another"))
    for read in (recorded_runs.find, pack):
        with pytest.raises(ValueError, match=r"runs/lora/0/record\.json is not "):
            read(results)
    assert path.exists()


def test_no_kill_loses_a_run(results, monkeypatch):
    """At each change of a file, in turn, the process ends; the same command then finishes."""
    before, replace, unlink = content(results), os.replace, Path.unlink

    def killed_at(count):
        left = itertools.count(count, -1)

        def dying(change):
            def changed(*given, **how):
                if next(left) <= 0:
                    raise SystemExit
                return change(*given, **how)

            return changed

        monkeypatch.setattr(os, "replace", dying(replace))
        monkeypatch.setattr(Path, "unlink", dying(unlink))

    for change in (pack, unpack):
        for count in itertools.count():
            if change is unpack and not (results / packed.RECORDS).exists():
                break  # it was killed when all had been done but to delete the other two files
            killed_at(count)
            with contextlib.suppress(SystemExit):
                change(results)
                break
            monkeypatch.undo()
            assert [run[:3] for run in content(results)] == [run[:3] for run in before]
            assert content(results) == before
        monkeypatch.undo()
        assert content(results) == before
        for path in results.rglob("*.tmp"):
            path.unlink()
        names = {path.name for path in files(results)}
        assert names.isdisjoint(packing.FILES if change is pack else {packed.RECORDS})


def test_no_kill_while_some_runs_are_unpacked_needs_more_than_another_command(results, monkeypatch):
    before, replace, part = content(results), os.replace, results / "runs" / "lora" / "0"
    pack(results)
    for count in itertools.count():
        left = itertools.count(count, -1)

        def dying(*given, left=left, **how):
            if next(left) <= 0:
                raise SystemExit
            return replace(*given, **how)

        monkeypatch.setattr(os, "replace", dying)
        with contextlib.suppress(SystemExit):
            unpack(part)
            break
        monkeypatch.undo()
        assert content(results) == before
        pack(results)  # what was killed before leaves nothing that this could not finish
        assert content(results) == before
    monkeypatch.undo()
    assert (part / "record.json").exists() and content(results) == before


def test_a_packed_run_is_neither_trained_nor_exported(results):
    record = run_record.read(results / "runs" / "lora" / "0")
    pack(results)
    folder = results / "runs" / "lora" / "0"
    for use in (finished_run.read_record, lambda each: folder_lock.alone(each).__enter__()):
        with pytest.raises(ValueError, match=rf"--unpack={folder} makes it a folder again$"):
            use(folder)
    assert not folder.exists() and record is not None
    assert (
        config_files.read_json(str(folder / "config.json")).to_dict()["seed"]
        == record.config["seed"]
    )
    with pytest.raises(FileNotFoundError):
        config_files.read_json(str(folder.parent / "7" / "config.json"))
