"""Reports: the runs behind them, what is chosen and warned of, and the files that they leave."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_records import planted, write
from report_study import (
    LABELS,
    RATES,
    lines,
    made,
    make_study,
    methods,
    rendered,
    said,
    tuned,
    tuning,
    wrong,
)

from experiments import report
from experiments.analysis import recorded_runs, task_evidence
from experiments.reports import document, plots
from experiments.runs import predictions
from experiments.setup.config import fill
from experiments.setup.config_flags import read_config
from lora_jax.files.json_text import config_digest, plain


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def test_a_grid_that_was_scored_on_one_set_alone_is_said_to_be_optimistic(tmp_path):
    for method, best in (("lora", 1e-3), ("dora", 3e-3)):
        for rate in RATES:
            for seed in range(2):
                share = (0.2 if rate == best else 0.3) + seed / 50
                folder = tmp_path / method / f"{rate}_{seed}"
                planted(folder, method, seed, LABELS, wrong(share, seed), rate=rate)
    found = methods(tmp_path)
    assert found["dora"].chosen_on == "scored" and found["dora"].budget == (3, 6)
    assert found["dora"].scores() == pytest.approx({(0, 0): 80.0, (1, 0): 78.0})
    text = said(tmp_path)
    assert "Settings of LoRA, DoRA were chosen on the same examples that they are scored on" in text
    for method in ("lora", "dora"):
        shutil.rmtree(tmp_path / method)
    for rate in RATES:
        tuning(tmp_path / f"{rate}", "lora", rate, rate * 100)
    (contest,) = made(tmp_path)
    assert contest.held_out and contest.methods[0].chosen_on == "scored"
    assert "on the held-out training examples" in rendered([contest], "markdown")


def test_equal_scores_choose_the_smaller_rate_and_divergence_is_last(tmp_path):
    tuned(tmp_path, "lora", (0.2, 0.2, 0.3), (), 0)
    assert methods(tmp_path)["lora"].chosen.rate == 3e-4
    assert methods(tmp_path)["lora"].edge == "lowest"
    how = {"status": "diverged", "best_step": None}
    tuning(tmp_path / "again", "lora", 3e-4, 0.0, seed=101, **how)
    assert methods(tmp_path)["lora"].chosen.rate == 1e-3  # which diverged with no seed
    tuning(tmp_path / "failed", "lora", 1e-3, 0.0, seed=101, status="failed", note="killed")
    assert methods(tmp_path)["lora"].chosen.rate == 1e-3
    text = rendered(made(tmp_path), "markdown")
    assert "| 1 diverged, 1 failed |" in text
    assert methods(tmp_path)["lora"].budget == (3, 5)


def test_unequal_budgets_are_warned_of(study):
    shutil.rmtree(study / "dora" / "0.0003")
    tuning(study / "more", "vera", 1e-2, 0.6)
    text = said(study)
    assert "Budgets differ: 2 settings in 2 runs for DoRA; 3 settings in 3 runs for LoRA; 4" in text


def test_a_chosen_setting_without_scored_runs_is_not_run(study):
    tuning(study / "better", "lora", 1e-4, 0.1)
    found = methods(study)
    assert found["lora"].chosen.rate == 1e-4 and not found["lora"].runs
    assert "chosen setting of LoRA has no scored runs (1 of its other settings have some)" in said(
        study
    )
    text = rendered(made(study), "markdown")
    assert (
        "| LoRA | not run | – | 0 | – | 0.0001 (lowest) | held-out | 10.00 | 100% | 4 (4 runs) |"
        in text
    )
    assert "no common seed" in text


def cut_short(folder, status=None):
    """What is left of a run that was killed: no record; below a sweep, a word on how it ended."""
    (folder / "record.json").unlink()
    if status:
        sweep = folder.parent.parent
        (sweep / "outcomes").mkdir(exist_ok=True)
        outcome = {"status": status, "note": "", "process": 1}
        (sweep / "outcomes" / f"{folder.name}.json").write_text(json.dumps(outcome))


def with_config(folder):
    """`fake_records` writes no config beside a record, as a run does first."""
    record = json.loads((folder / "record.json").read_text())
    (folder / "config.json").write_text(json.dumps(record["config"]))


def test_runs_without_a_record_are_counted_with_their_method(study):
    killed = study / "sweep" / "trials" / "killed"
    tuning(killed, "dora", 1e-2, 0.1)
    planted(study / "lost", "dora", 9, LABELS, wrong(0.1, 0), rate=3e-3)
    planted(study / "again", "lora", 0, LABELS, wrong(0.2, 0), rate=1e-3)  # of one with a record
    planted(study / "alone", "hira", 0, LABELS, wrong(0.2, 0), rate=1e-3)
    for folder in (killed, study / "lost", study / "again", study / "alone"):
        with_config(folder)
    (study / "sweep" / "trials.json").write_text('{"version": 1, "trials": []}')
    cut_short(killed, "killed")
    for name in ("lost", "again", "alone"):
        cut_short(study / name)
    found = methods(study)
    assert {key: method.budget for key, method in found.items()} == {
        **dict.fromkeys(("lora", "vera"), (3, 3)),
        "dora": (4, 4),
        "hira": (1, 1),
    }
    assert found["dora"].chosen.rate == 3e-3 and found["dora"].edge == "highest"  # of known ones
    text = said(study)
    assert "DoRA 1 unfinished at 0.003 and 1 killed at 0.01" in text
    assert "4 settings in 4 runs for DoRA" in text and "LoRA 1 unfinished" not in text
    text = rendered(made(study), "markdown")
    assert "| 1 unfinished, 1 killed |" in text and "not run" in text
    counts = {
        line["method"]: line["unfinished"] for line in lines(study) if line["line"] == "method"
    }
    assert counts["dora"] == "2" and counts["lora"] == "0"


@pytest.mark.parametrize("registration", ["", "own"])
def test_unfinished_runs_of_another_registration_are_not_counted(tmp_path, registration):
    """Such as pilots in a registered study's folder."""
    for name, seed, digest in (("done", 0, "own"), ("lost", 1, registration)):
        changes = {"study.registration": digest}
        planted(tmp_path / name, "lora", seed, LABELS, wrong(0.2, 0), changes=changes)
    with_config(tmp_path / "lost")
    cut_short(tmp_path / "lost")
    (contest,) = made(tmp_path)
    number = 1 if registration else 0
    assert contest.methods[0].budget == (1, 1 + number) and len(contest.unfinished) == number


def test_rates_are_drawn_on_the_examples_that_chose_alone(study):
    """A rate whose run on held-out examples was killed has no score among those."""
    tuning(study / "lost", "dora", 1e-2, 0.1)
    with_config(study / "lost")
    cut_short(study / "lost")
    planted(study / "scored", "dora", 0, LABELS, wrong(0.1, 0), rate=1e-2)
    assert 1e-2 in {each.rate for each in methods(study)["dora"].tried}
    assert [rate for rate, _, _ in plots.best_by_rate(methods(study)["dora"], "accuracy")] == [
        *RATES
    ]


@pytest.mark.filterwarnings("ignore:the load_module")
def test_trials_that_failed_before_they_had_a_folder_are_found(tmp_path):
    arguments = ["--config=configs/glue.py:task=sst2,variant=lora", "--config.seed=3"]
    config = fill(read_config(arguments).to_dict())
    digest = config_digest(plain(config))
    listed = [
        {"name": name, "digest": digest, "overrides": {}, "arguments": arguments}
        for name in ("failed", "waiting", "ended")
    ]
    listed[2]["digest"] = "another"
    (tmp_path / "trials.json").write_text(json.dumps({"version": 1, "trials": listed}))
    (tmp_path / "outcomes").mkdir()
    for name, status in (("failed", "failed"), ("ended", "running")):
        outcome = {"status": status, "note": "no data", "process": 1}
        (tmp_path / "outcomes" / f"{name}.json").write_text(json.dumps(outcome))
    one, two, three = sorted(recorded_runs.find_unfinished(tmp_path), key=lambda each: each.status)
    assert (three.status, three.number) == ("waiting", (3, 0))
    assert (one.status, one.number, one.config.variant.name) == ("failed", (3, 0), "lora")
    for train, draw in ((0, 0), (8, 4)):  # no draw where all examples are trained on
        listed[0]["arguments"] = [
            *arguments,
            f"--config.data.train={train}",
            "--config.data.draw=4",
        ]
        config = fill(read_config(listed[0]["arguments"]).to_dict())
        listed[0]["digest"] = config_digest(plain(config))
        (tmp_path / "trials.json").write_text(json.dumps({"version": 1, "trials": listed}))
        assert (3, draw) in [
            each.number for each in recorded_runs.find_unfinished(tmp_path) if each.config
        ]
    assert (two.status, two.config) == ("interrupted", None)
    assert "2 runs without a record" in report.apart([one, two])[0]


def test_a_config_of_something_else_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert recorded_runs.find_unfinished(tmp_path) == []
    (tmp_path / "config.json").write_text('{"model')
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        recorded_runs.find_unfinished(tmp_path)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("data.draw", []),
        ("data.draw", True),
        ("data.validation", {}),
        ("seed", []),
        ("study.row", 3),
        ("study.table", ["a"]),
        ("study.column", None),
        ("variant.name", 3),
        ("quantize.storage", [1]),
        ("optimizer.learning_rate", "fast"),
        ("start_from", 3),
    ],
)
def test_a_setting_of_another_type_is_named(tmp_path, recorded, where, value):
    """In a record, whose digest anybody can make anew, and in a config without one."""
    planted(tmp_path / "a", "lora", 0, LABELS, wrong(0.2, 0), rate=1e-3)
    record, config = (tmp_path / "a" / f"{name}.json" for name in ("record", "config"))
    content = json.loads(record.read_text())
    holder = content["config"]
    *sections, last = where.split(".")
    for section in sections:
        holder = holder[section]
    holder[last] = value
    content["config_digest"] = config_digest(content["config"])
    del content["seal"]
    made(tmp_path)
    record.unlink()
    if recorded:
        record.write_text(json.dumps(content))
    else:
        config.write_text(json.dumps(content["config"]))
    named = "record" if recorded else "config"
    with pytest.raises(ValueError, match=rf"a/{named}\.json: .*{where} is .*, expected ") as error:
        made(tmp_path)
    assert "\n" not in str(error.value)


def test_the_development_set_seen_with_other_settings_is_warned_of(study):
    assert "other settings than the chosen" not in said(study)
    for seed in (0, 1):
        planted(study / f"more{seed}", "vera", seed, LABELS, wrong(0.3, seed), rate=3e-3)
    assert "with other settings than the chosen one were scored on the development set" in said(
        study
    )
    assert "should choose a setting: VeRA 2 runs (0.003)." in said(study)
    for seed in (0, 1):  # another setting with the same rate
        how = {"rate": 3e-3, "changes": {"variant.rank": 3}}
        planted(study / f"rank{seed}", "vera", seed, LABELS, wrong(0.3, seed), **how)
    assert "should choose a setting: VeRA 4 runs (0.003)." in said(study)


def test_unlike_machines_are_warned_of_and_times_are_not_drawn(study):
    assert "different machines" not in said(study)
    assert plots.by_cost(made(study)[0], plots.TIME, plots.AXES[plots.TIME]) is not None
    shutil.rmtree(study / "vera" / "0")
    how = {"device": {"platform": "gpu", "kind": "H100", "count": 1}, "rate": 1e-3}
    planted(study / "vera" / "0", "vera", 0, LABELS, wrong(0.45, 0), **how)
    text = said(study)
    assert "Seconds and memory are of different machines or versions of JAX" in text
    assert "VeRA on 1 gpu (H100)" in text
    (contest,) = made(study)
    assert plots.TIME not in {each.figure.axes[0].get_xlabel() for each in plots.pictures(contest)}


def test_times_of_records_that_name_no_processor_are_not_compared(tmp_path):
    for method in ("lora", "vera"):
        for seed in range(2):
            device = {"platform": "cpu", "kind": "cpu", "count": 1}
            folder = tmp_path / method / str(seed)
            planted(folder, method, seed, LABELS, wrong(0.2, seed), device=device)
    assert "Seconds and memory are of machines that the records do not name" in said(tmp_path)
    (contest,) = made(tmp_path)
    assert plots.by_cost(contest, plots.TIME, plots.AXES[plots.TIME]) is None


def test_a_task_that_no_method_learnt_is_warned_of(tmp_path):
    """Scores of the most frequent answer, or below: 60 and 55 of 100."""
    labels = np.repeat([0, 1], [60, 40])
    warning = "No mean is above 60.00, the score of who always gives the most frequent answer"
    for name, best in (("chance", 60), ("learnt", 61)):
        for method, right in (("lora", best), ("vera", 55)):
            planted(tmp_path / name / method, method, 0, labels, np.arange(100) >= right)
        assert (warning in said(tmp_path / name)) == (name == "chance")


def test_a_choice_among_texts_has_no_most_frequent_answer(tmp_path):
    arg = "task=commonsense_qa_texts,row=lora"
    labels, outputs = np.repeat([0, 1], [60, 40]), np.eye(5)[np.zeros(100, int)]
    how = {"labels": labels, "outputs": outputs}
    write(tmp_path, "studies.against_lora_smollm2", arg, {"accuracy": 0.6}, **how)
    (contest,) = made(tmp_path)
    assert task_evidence.most_frequent(contest) is None


def test_the_caption_speaks_of_a_line_only_where_one_is_drawn(tmp_path):
    """A method without an adapter is a line where costs are logarithmic, and else a point at 0."""
    for name, counts in (("near", {"lora": 100, "vera": 0}), ("far", {"lora": 9, "vera": 0})):
        counts = counts | {"dora": 1000 if name == "far" else 200}
        for method, count in counts.items():
            how = {"parameters": count}
            planted(tmp_path / name / method, method, 0, LABELS, wrong(0.2, 0), **how)
        (contest,) = made(tmp_path / name)
        drawn = next(each for each in plots.pictures(contest) if "parameters" in each.stem)
        dashed = [line for line in drawn.figure.axes[0].lines if line.get_linestyle() == "--"]
        assert bool(dashed) == ("A dashed line" in drawn.caption) == (name == "far")


def test_memory_is_said_to_be_that_of_all_trials_of_a_program(study):
    text = rendered(made(study), "markdown", resamples=100)
    assert "share a program have the peak of all of them together" in text


@pytest.mark.parametrize("how", ["short", "text", "array", "other", "shape"])
def test_damaged_predictions_are_named(study, how):
    path = study / "dora" / "0" / "predictions.npz"
    whole = path.read_bytes()
    if how == "array":
        np.save(path.with_name("a.npy"), np.zeros(3))
        path.with_name("a.npy").rename(path)
    elif how == "shape":
        np.savez(path, **{"validation": np.zeros((4, 2)), "validation/label": np.zeros(3)})
    else:
        damaged = whole[:400] + bytes(100) + whole[500:]
        path.write_bytes({"short": whole[:300], "text": b"", "other": damaged}[how])
    with pytest.raises(
        ValueError, match=r"dora/0/predictions.npz is damaged .*train this run anew"
    ):
        rendered(made(study), "csv")


def test_predictions_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    each = {"validation": predictions.Predictions(np.eye(2), np.array([0, 1]))}
    predictions.write(tmp_path, each)
    before = (tmp_path / predictions.NAME).read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        predictions.write(tmp_path, {"validation": predictions.Predictions(np.zeros((9, 2)), None)})
    assert [path.name for path in tmp_path.iterdir()] == [predictions.NAME]
    assert (tmp_path / predictions.NAME).read_bytes() == before


def test_the_name_of_a_file_says_its_format():
    names = ("a.md", "a.tex", "a.html", "a.csv", "a.txt", "a")
    formats = ["markdown", "latex", "html", "csv", "rich", "rich"]
    assert [document.format_of(Path(each)) for each in names] == formats


@pytest.mark.parametrize("form", document.FORMATS)
def test_only_a_report_in_the_same_format_is_replaced(study, tmp_path_factory, form):
    path = tmp_path_factory.mktemp("out") / "deep" / "report"
    text = rendered(made(study), form, resamples=100)
    for _ in range(2):
        document.write_report(path, form, text)
    assert path.read_text(encoding="utf-8") == text
    assert [each.name for each in path.parent.iterdir()] == ["report"]
    other = "csv" if form != "csv" else "html"
    with pytest.raises(ValueError, match=f"exists and is not a report with --format={other}"):
        document.write_report(path, other, "text")
    path.write_text("\\section{My paper}")
    with pytest.raises(ValueError, match="name another file, or remove this one"):
        document.write_report(path, form, text)
    assert path.read_text() == "\\section{My paper}"
    with pytest.raises(ValueError, match="is a folder: name a file"):
        document.require_replaceable(path.parent, form)
