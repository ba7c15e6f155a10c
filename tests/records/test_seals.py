"""What was changed after it was written is not believed; what has no seal is, and is counted."""

import itertools
import json
import re
import zlib

import numpy as np
import pytest
from fake_records import planted, write

from configs import glue
from experiments.reports.figures import scores
from experiments.reports.tables import config_tables
from experiments.runs import run
from experiments.setup.config import parse
from lora_jax.records import run_record, seal
from lora_jax.records.metrics_log import Metrics, last_check, read_metrics

LABELS = np.tile([0, 1], 10)


@pytest.fixture
def results(tmp_path):
    """Two methods, each of two seeds."""
    for method in ("lora", "dora"):
        for seed in range(2):
            wrong = np.arange(20) < 3 + seed
            planted(tmp_path / method / str(seed), method, seed, LABELS, wrong, rate=1e-3)
    return tmp_path


def change(path, made):
    values = json.loads(path.read_text())
    made(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "made",
    [
        lambda values: values["metrics_last"].update(accuracy=0.99),
        lambda values: values["metrics_best"].update(accuracy=1),
        lambda values: values["device"].update(kind="faster"),
        lambda values: values.update(seconds=0.5),
        lambda values: values.update(note="as it should be"),
        lambda values: values.update(seal="0" * 64),
        lambda values: values.update(seal=""),
        lambda values: values.update(seal=None),
    ],
)
def test_a_changed_record_is_refused_by_whoever_reads_it(results, made):
    path = results / "lora" / "0" / "record.json"
    before = path.read_bytes()
    change(path, made)
    assert path.read_bytes() != before
    said = r"lora/0/record\.json: it was changed after it was written"
    with pytest.raises(ValueError, match=said):
        run_record.read(path.parent)
    with pytest.raises(ValueError, match=said):
        config_tables.render_table("glue", results, "markdown")


def test_the_order_of_keys_and_the_layout_are_no_content(results):
    path = results / "lora" / "0" / "record.json"
    record = run_record.read(path.parent)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert run_record.read_sealed(path.parent) == (record, True)


def test_a_sealed_run_has_checks_in_its_metrics(tmp_path):
    write(tmp_path, "glue", "", {"matthews": 0.5}, losses=(0.5, 0.25))
    path = tmp_path / "metrics.jsonl"
    scores.draw(tmp_path, "training", tmp_path / "x.png")
    path.write_bytes(CHECK.sub(b"", path.read_bytes().replace(b"0.25", b"0.125")))
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no checks \(crc32\), but its reco"):
        scores.draw(tmp_path, "training", tmp_path / "x.png")
    change(tmp_path / "record.json", lambda values: values.pop("seal"))  # as earlier versions wrote
    assert len(scores.draw(tmp_path, "training", tmp_path / "x.png")) == 1


def test_a_seal_beside_checks_is_not_dropped_unseen(tmp_path):
    write(tmp_path, "glue", "", {"matthews": 0.5}, losses=(0.5, 0.25))
    change(tmp_path / "record.json", lambda values: values.pop("seal"))
    with pytest.raises(
        ValueError, match=r"record\.json: it has no seal, but metrics\.jsonl beside"
    ):
        run_record.read(tmp_path)


def test_a_completed_run_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build", None)
    run_record.claim(tmp_path, parse(glue.get_config("task=sst2").to_dict()).plain)
    record = write(tmp_path, "glue", "task=sst2", {"accuracy": 0.5})
    said: list[str] = []
    for sealed in (True, False):
        assert run.run(parse(record.config), tmp_path, say=said.append) == record
        assert said == ([] if sealed else [run.UNSEALED])
        change(tmp_path / "record.json", lambda values: values.pop("seal", None))


def test_no_changed_byte_of_a_line_changes_what_is_read(tmp_path):
    """A last line that is none is left out, and the name of a check may be another."""
    with Metrics(tmp_path) as metrics:
        for step in range(1, 4):
            metrics.write(step, {"loss": step / 7, "accuracy": 0.25 * step})
    whole, rows = metrics.path.read_bytes(), read_metrics(metrics.path)
    assert rows[1] == {"step": 2, "loss": 2 / 7, "accuracy": 0.5}
    first, refused = whole.index(b"\n") + 1, 0
    for place, bit in itertools.product(range(first, len(whole)), (1, 2)):
        data = bytearray(whole)
        data[place] ^= bit
        metrics.path.write_bytes(data)
        try:
            found = read_metrics(metrics.path)
        except ValueError as error:
            refused += 1
            assert "metrics.jsonl, line " in str(error)
        else:
            assert [{name: row[name] for name in rows[0]} for row in found] == rows[: len(found)]
    assert refused > 1.5 * first


@pytest.fixture
def log(tmp_path):
    """Five lines of a run, and where they are."""
    with Metrics(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": step / 8})
    return metrics.path, metrics.path.read_bytes().splitlines(keepends=True)


CHECK = re.compile(rb', "crc32": "[0-9a-f]{8}"')


@pytest.mark.parametrize(
    ("made", "number"),
    [
        (lambda a, b, c, d, e: [a, b, d, e], 3),  # dropped
        (lambda a, b, c, d, e: [b, c, d, e], 1),
        (lambda a, b, c, d, e: [a, b, b, c, d, e], 3),  # doubled
        (lambda a, b, c, d, e: [a, b, c, d, e, e], 6),
        (lambda a, b, c, d, e: [a, c, b, d, e], 2),  # moved
        (lambda a, b, c, d, e: [a, b, c, e, d], 4),
        (lambda a, b, c, d, e: [a, b, CHECK.sub(b"", c), d, e], 3),  # its check dropped
        (lambda a, b, c, d, e: [a, b, c, d, CHECK.sub(b"", e)], 5),
        (lambda a, b, c, d, e: [CHECK.sub(b"", a), b, c, d, e], 2),  # the first that has one
        (lambda a, b, c, d, e: [a, b, c, d, e[:9] + b"\n"], 5),  # broken, and complete
        (lambda a, b, c, d, e: [a, b, c, d, e, b"\n"], 6),
    ],
)
def test_what_was_done_to_lines_is_seen(log, made, number):
    path, lines = log
    path.write_bytes(b"".join(made(*lines)))
    before = path.read_bytes()
    for read in (read_metrics, lambda path: Metrics(path.parent)):
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line {number} ") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_the_checks_are_a_chain(log):
    """As zlib has it for all that the lines say, one after the other."""
    path, lines = log
    after = 0
    for line in lines:
        said = CHECK.sub(b"", line)
        after = zlib.crc32(said.removesuffix(b"\n"), after)
        assert line == said[:-2] + b', "crc32": "%08x"}\n' % after
    with Metrics(path.parent) as metrics, pytest.raises(ValueError, match="'crc32' is taken"):
        metrics.write(6, {"crc32": 1.0})


def test_lines_of_an_earlier_version_are_held_by_the_checks_after_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    path.write_bytes(old)
    with Metrics(tmp_path) as metrics:
        metrics.write(3, {"loss": 0.125})
    whole = path.read_bytes()
    assert whole.startswith(old) and [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    path.write_bytes(whole.replace(b"0.25", b"0.35"))
    with pytest.raises(ValueError, match="line 3 or a line before it was changed"):
        read_metrics(path)


def test_a_checked_line_may_hold_the_word(tmp_path):
    line = seal.checked({"step": 1, "text": 'a "crc32" of'})
    assert seal.line_digest(line) and json.loads(line)["text"] == 'a "crc32" of'
    with pytest.raises(ValueError, match="is not the check of this line"):
        seal.line_digest(line.replace(b" of", b" on"))


def test_a_new_record_of_a_failed_run_takes_the_place_of_one_without_a_seal(tmp_path):
    write(tmp_path, "glue", "", {"matthews": 0.5}, status="failed", note="killed")
    change(tmp_path / "record.json", lambda values: values.pop("seal"))
    record = write(tmp_path, "glue", "", {"matthews": 0.5})
    assert run_record.read_sealed(tmp_path) == (record, True)


def test_metrics_that_were_cut_at_the_end_of_a_line_are_refused(log):
    path, lines = log
    check = last_check(path)
    assert check is not None
    assert lines[-1].endswith(f'"crc32": "{check}"}}\n'.encode())
    assert len(read_metrics(path, True, check)) == len(lines)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(ValueError, match=r"does not end with the line that its record names"):
            read_metrics(path, True, check)
        assert len(read_metrics(path, True)) == kept  # the record of an earlier version
    path.write_bytes(b"")
    assert last_check(path) is None and last_check(path.with_name("none")) is None


VALUES = {"rungs": [{"step": 2, "scores": [[0, 0.5], [1, None]]}], "name": "a"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "b"}, "was changed after it was written"),
        ({"rungs": [{"step": 2, "scores": [[1, 0.5], [0, None]]}]}, "was changed"),
        ({"seal": None}, "was changed after it was written"),
        ({}, "has no seal"),
    ],
)
def test_a_change_is_noticed(tmp_path, change, said):
    path = tmp_path / "a.json"
    seal.write(path, VALUES)
    assert seal.read(path) == VALUES
    content = json.loads(path.read_text()) | change
    if not change:
        del content["seal"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json.*{said}"):
        seal.read(path)
