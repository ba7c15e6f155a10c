"""A record comes back as it was written, names the field that is wrong, and is not overwritten.

A run's folder belongs to one configuration.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reordered import reordered

from experiments.sweeps.folder import SweepFolder
from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import config_digest
from lora_jax.records import environment, run_record
from lora_jax.records.run_record import Record, claim

GOOD = {
    "schema_version": 1,
    "experiment": "quickstart",
    "config": {"rank": 8, "targets": ["q"], "clip": None},
    "config_digest": config_digest({"rank": 8, "targets": ["q"], "clip": None}),
    "versions": {"python": "3.11.7", "lora_jax": None},
    "device": {"platform": "cpu", "kind": "cpu", "count": 8},
    "git": {"commit": "0" * 40, "dirty": False},
    "seed": 0,
    "data_digest": "d",
    "weights_digest": None,
    "parameters_trained": 10,
    "parameters_total": 100,
    "metrics_best": {"accuracy": 0.9},
    "metrics_last": {"accuracy": 1},
    "rule": "max accuracy over evaluations",
    "steps": 100,
    "best_step": 50,
    "seconds": 1.5,
    "seconds_total": 2,
    "peak_memory_bytes": 1 << 30,
    "status": "completed",
    "note": "",
    "ranks": {"layers/query/kernel": [3, 1]},
    "metric": "accuracy",
    "parameters_adapters": 8,
    "target": {"score": 0.8, "step": 40, "seconds": 0.6},
    "evaluations": [
        {"step": 50, "seconds": 0.7, "score": 0.9},
        {"step": 100, "seconds": 1.5, "score": 1.0},
    ],
    "tokenised_per_second": 4000.0,
    "metrics_first": {"accuracy": 0.2},
    "samples": [{"prompt": "1 + 1", "expected": ["2"], "before": "11", "after": "2"}],
    "signatures": {"bleu": "nrefs:1"},
    "audit": {"leaf": "loss", "error": 1e-7, "tolerance": 4e-6, "batches": 2},
    "gathered": {"batches": 8, "examples": 256, "seconds": 1.5, "digest": "d"},
    "reading_digest": "r",
    "metrics_check": "0123abcd",
    "trackers": {"wandb": "runs/lora/tracking/wandb"},
    "rungs": [{"step": 4, "score": 0.5, "place": 1, "trials": 4, "kept": 2}],
    "label_names": ["no", "yes"],
}
OPTIONAL = {"note", "ranks", "metric", "parameters_adapters", "target", "evaluations"}
OPTIONAL |= {"tokenised_per_second", "metrics_first", "samples", "signatures", "audit", "gathered"}
OPTIONAL |= {"reading_digest", "metrics_check", "trackers", "rungs", "label_names"}


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = run_record.validate(GOOD)
    assert (
        dataclasses.asdict(record) == GOOD
        and {f.name for f in dataclasses.fields(Record)} == GOOD.keys()
    )
    assert run_record.read(tmp_path) is None
    run_record.write(tmp_path / "run", record)
    assert run_record.read(tmp_path / "run") == record
    content = json.loads((tmp_path / "run" / "record.json").read_text())
    text = json.dumps(GOOD, sort_keys=True, separators=(",", ":"))
    assert content.pop("seal") == hashlib.sha256(text.encode()).hexdigest()
    assert content == GOOD
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, r"seed is None, expected int$"),
        ({"seed": True}, r"seed is True, expected int$"),
        ({"seed": 1.0}, r"seed is 1\.0, expected int$"),
        ({"schema_version": 2}, r"schema_version is 2, expected Literal\[1\]"),
        ({"schema_version": True}, r"schema_version is True"),
        ({"status": "done"}, r"status is 'done', expected Literal\['completed', 'diverged'"),
        ({"seconds": math.nan}, r"seconds is nan, expected float"),
        ({"seconds": math.inf}, r"seconds is inf"),
        ({"seconds": False}, r"seconds is False"),
        ({"seconds": -1.0}, r"seconds is negative"),
        ({"experiment": 3}, r"experiment is 3, expected str"),
        ({"versions": ["jax"]}, r"versions is \['jax'\], expected dict"),
        ({"versions": {"jax": 0.1}}, r"versions\.jax is 0\.1, expected str \| None"),
        ({"git": "0000"}, r"git is '0000', expected dict"),
        ({"git": {"dirty": 1}}, r"git is .*dirty"),
        ({"device": {"count": None}}, r"device\.count is None"),
        (
            {"metrics_best": {"loss": math.nan}},
            r"metrics_best\.loss is nan, expected float \| None",
        ),
        ({"metrics_last": {"loss": "NaN"}}, r"metrics_last\.loss is 'NaN'"),
        ({"metrics_last": {"loss": None}}, r"metrics_last\.loss is None in a completed run"),
        ({"config_digest": "0"}, r"config_digest is not the digest of config"),
        ({"parameters_trained": -1}, r"parameters_trained is negative"),
        ({"parameters_adapters": -1}, r"parameters_adapters is negative"),
        ({"best_step": 101}, r"best_step is 101 of 100 steps"),
        ({"best_step": -1}, r"best_step is -1"),
        ({"metric": None}, r"metric is None, expected str"),
        ({"parameters_adapters": 0.5}, r"parameters_adapters is 0\.5, expected int \| None"),
        ({"target": 0.8}, r"target is 0\.8, expected dict"),
        ({"evaluations": {}}, r"evaluations is \{\}, expected list"),
        ({"evaluations": [3]}, "evaluations has 3, expected step, seconds and score"),
        ({"evaluations": [{"step": 1, "seconds": "x", "score": 1.0}]}, "evaluations has "),
        ({"evaluations": [{"step": 1, "seconds": 1.0}]}, "evaluations has "),
        ({"samples": ["x"]}, "samples has 'x', expected texts by name"),
        ({"extra": 1, "seed": "x"}, r"extra is not a field of a record; seed is 'x'"),
    ],
)
def test_an_invalid_record_says_which_field_and_why(change, message):
    with pytest.raises(ValueError, match=message):
        run_record.validate(GOOD | change)


@pytest.mark.parametrize("name", sorted(GOOD.keys() - OPTIONAL))
def test_a_missing_field_is_named(name):
    with pytest.raises(ValueError, match=f"record: {name} is missing$"):
        run_record.validate({k: v for k, v in GOOD.items() if k != name})


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_metrics_of_a_run_that_did_not_complete_may_be_null(tmp_path, status):
    values = GOOD | {
        "status": status,
        "metrics_last": {"loss": math.nan, "norm": math.inf, "n": None},
    }
    run_record.write(tmp_path, Record(**values))
    null = dict.fromkeys(["loss", "norm", "n"])
    assert run_record.read(tmp_path) == Record(**values | {"metrics_last": null})
    with pytest.raises(ValueError, match=r"metrics_last\.loss"):
        run_record.write(tmp_path, Record(**values | {"status": "completed"}))
    run_record.write(tmp_path, Record(**GOOD))  # tried again, and completed this time
    assert run_record.read(tmp_path) == Record(**GOOD)


def test_a_record_tells_the_way_to_any_score():
    record = run_record.validate(GOOD)
    assert record.reached(0.9) == {"step": 50, "seconds": 0.7, "score": 0.9}
    assert (record.reached(0.95) or {})["step"] == 100
    assert record.reached(1.1) is None
    assert run_record.validate({**GOOD, "evaluations": None}).reached(0.1) is None
    # What a run that diverged has for a number that is none.
    diverged = [{"step": 1, "seconds": 1.0, "score": "NaN"}, {"step": 2, "seconds": 2, "score": 1}]
    found = run_record.validate({**GOOD, "evaluations": diverged}).reached(0.1)
    assert found is not None and found["step"] == 2


def test_a_record_from_before_the_optional_fields_is_read():
    old = run_record.validate({k: v for k, v in GOOD.items() if k not in OPTIONAL})
    assert (old.note, old.ranks, old.metric, old.target) == ("", None, "", None)


def test_a_completed_record_is_not_overwritten(tmp_path):
    run_record.write(tmp_path, Record(**GOOD))
    run_record.write(tmp_path, Record(**GOOD))
    with pytest.raises(ValueError, match="holds the record of a completed run"):
        run_record.write(tmp_path, Record(**GOOD | {"note": "another"}))
    assert run_record.read(tmp_path) == Record(**GOOD)


def test_numbers_of_numpy_and_jax_are_plain_numbers(tmp_path):
    metrics = {"accuracy": np.float32(0.5), "loss": jnp.float32(0.25), "n": np.int64(3)}
    with pytest.raises(ValueError, match="accuracy"):
        run_record.validate(GOOD | {"metrics_last": metrics})
    plain = {k: float(v) for k, v in metrics.items()}
    assert json_text.plain(metrics) == plain
    for bad in ({1: 2}, {"a": object()}, {"a": [np.zeros(2)]}):
        with pytest.raises(ValueError, match=r"value(\.a(\[0\])?)? (has the key 1|is a )"):
            json_text.plain(bad)


@pytest.mark.parametrize("name", ["record.json", "trials.json"])
def test_a_file_is_named_once(tmp_path, name):
    path = tmp_path / name
    for content in ("[" * 200, "{", "[1]", '{"a": NaN}', '{"a": 1, "a": 2}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"\S") as error:
            run_record.read(tmp_path) if name == "record.json" else SweepFolder(tmp_path).require(
                ()
            )
        assert str(error.value).count(str(path)) == 1 and "\n" not in str(error.value)


def test_a_file_is_replaced_and_never_written_over(tmp_path):
    path, link = tmp_path / "record.json", tmp_path / "link"
    write_atomically(path, b"old")
    os.link(path, link)
    write_atomically(path, b"new")
    assert (path.read_bytes(), link.read_bytes()) == (b"new", b"old")


def test_the_environment_fits_a_record(tmp_path):
    found = environment.environment()
    record = run_record.validate(GOOD | found)
    assert record.versions["jax"] == jax.__version__
    kind = jax.devices()[0].device_kind
    where = {"platform": "cpu", "kind": kind, "count": 8}
    assert record.device == {**where, "processor": environment.processor_model()}
    used = np.ones(1 << 24)
    assert environment.peak_memory_bytes() > used.nbytes


CONFIG = {
    "optimizer": {"learning_rate": 1e-3, "betas": (0.9, 0.999)},
    "targets": ["q", "v"],
    "seed": 0,
}


def test_a_folder_is_claimed_once_and_resumed_by_the_same_configuration(tmp_path):
    folder = tmp_path / "runs" / "1"
    assert claim(folder, CONFIG) is False
    assert json.loads((folder / "config.json").read_text())["optimizer"]["betas"] == [0.9, 0.999]
    assert claim(folder, CONFIG) is True
    assert claim(str(folder), reordered(CONFIG, True)) is True
    assert claim(tmp_path / "runs" / "2", CONFIG) is False


def test_a_setting_that_is_null_is_as_good_as_absent(tmp_path):
    """Earlier versions wrote out the settings of a variant that were not set."""
    variants = [{"name": "lora", "rank": None}, {"name": "lora"}, {"name": "lora", "rank": 8}]
    for number, first in enumerate(variants):
        folder = tmp_path / str(number)
        claim(folder, CONFIG | {"variant": first})
        for variant in variants:
            if (variant.get("rank") == 8) == (first.get("rank") == 8):
                assert claim(folder, CONFIG | {"variant": variant}) is True
                continue
            with pytest.raises(
                ValueError, match=r"variant\.rank is (8|absent) there and (8|absent) h"
            ):
                claim(folder, CONFIG | {"variant": variant})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            CONFIG | {"optimizer": {"learning_rate": 3e-4, "betas": (0.9, 0.999)}},
            r"config\.optimizer\.learning_rate is 0\.001 there and 0\.0003 here; name another",
        ),
        (CONFIG | {"seed": 0.0}, r"config\.seed is 0 there and 0\.0 here"),
        (CONFIG | {"new": {"x": 1}}, r"config\.new\.x is absent there and 1 here"),
        ({"optimizer": CONFIG["optimizer"], "seed": 0}, r'targets is \["q","v"\] there and absent'),
        (
            {"a": 1, "b": 2, "seed": 1},
            r"config\.a is absent there and 1 here, config\.b .* \(and 3 more\)",
        ),
    ],
)
def test_another_configuration_is_named_key_by_key(tmp_path, other, message):
    claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        claim(tmp_path, other)
    assert (tmp_path / "config.json").read_bytes() == before


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"holds thesis\.tex but no config\.json: name a new"):
        claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file"):
        claim(tmp_path / "thesis.tex", CONFIG)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["chapter 1"]
    for content in ("{", "[1]"):
        broken = tmp_path / content
        broken.mkdir()
        (broken / "config.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"config\.json(: expected a JSON object| is not JSON)"
        ):
            claim(broken, CONFIG)


def test_a_claim_that_was_killed_half_way_can_be_repeated(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text('{"opt')
    assert claim(tmp_path, CONFIG) is False


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["flags : fpu avx512_bf16", "vendor_id : AuthenticAMD"], True),
        (["flags : fpu avx512_bf16", "vendor_id : GenuineIntel"], False),
        (["flags : fpu amx_bf16 amx_tile", "vendor_id : GenuineIntel"], True),
        (["flags : fpu avx512_bf16_of_another_kind", "vendor_id : AuthenticAMD"], False),
        (["Features : fp asimd"], False),
        ([], True),
    ],
)
def test_only_processors_with_a_unit_multiply_bfloat16(lines, expected, monkeypatch):
    monkeypatch.setattr(environment, "processor", lambda *fields: lines)
    assert environment.multiplies_bfloat16() is expected


@pytest.mark.parametrize("tracked", [True, False])
def test_git_is_of_the_checkout_that_holds_the_library(tmp_path, tracked, monkeypatch):
    def git(*args):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = Path(environment.__file__).read_text()
    (tmp_path / "records.py").write_text(source)
    (tmp_path / "other.py").write_text("1")
    git("init", "-q")
    git("add", "records.py" if tracked else "other.py")
    git("commit", "-qm", "one")

    def seen():
        description = importlib.util.spec_from_file_location("copied", tmp_path / "records.py")
        copied = importlib.util.module_from_spec(description)
        monkeypatch.setitem(sys.modules, "copied", copied)
        description.loader.exec_module(copied)
        return copied.environment()["git"]

    commit = git("rev-parse", "HEAD")
    assert seen() == ({"commit": commit, "dirty": False} if tracked else None)
    if tracked:
        (tmp_path / "records.py").write_text(source + "\n")
        assert seen()["dirty"] is True
