"""An estimate of a sweep's time counts all that its trials do."""

import types

import pytest
import small_model
from commands import ROOT
from quickstart_sweep import SMOKE, made

from experiments.sweeps import preflight

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_what_calls_cost():
    cost = preflight.Cost(compile=3.0, call=2.0, longest=16)
    assert cost.called({8: 2, 16: 4}) == 2 * 1 + 4 * 2
    assert cost.compiled({8: 2, 16: 4}) == 2 * 3
    found = preflight.Estimate(program=7.0, built=0.5, trained=2.0, steps=8)
    assert found.of(5) == 7 + 5 * 2.5
    # 8 trials for 1 step, 4 of them for another, 2 for two more, and 1 to the end
    assert found.of(8, halving=2) == 7 + 8 * 0.5 + (8 * 1 + 4 * 1 + 2 * 2 + 1 * 4) * 2 / 8


def test_runs_that_write_texts_are_known():
    arguments = [f"--config={ROOT / 'configs' / 'instruct.py'}:size=smoke"]
    (trial,) = made("config.seed=0", arguments=arguments)
    assert preflight.writes(trial.config)
    silent = [*arguments, "--config.generate.samples=0", "--config.generate.scored=0"]
    for given in (silent, SMOKE):
        assert not preflight.writes(made("config.seed=0", arguments=given)[0].config)


@pytest.mark.parametrize("first", [False, True])
def test_an_estimate_has_all_that_a_trial_does(tmp_path, monkeypatch, first):
    """The shared part by itself, and as many calls of the model as a run makes."""
    names = ("data.train", "data.validation", "data.max_length", "train.batch_size")
    settings = zip(names, (64, 40, 16, 8), strict=True)
    arguments = [*SMOKE, f"--config.model.name={small_model.write(tmp_path / 'bert')}"]
    arguments += [f"--config.{name}={value}" for name, value in settings]
    arguments += [f"--config.train.evaluate_first={first}"]
    config = made("config.data.buckets=1", arguments=arguments)[0].config
    clock = [0.0]

    def slow(name, seconds):
        function = getattr(preflight, name)

        def late(*given, **options):
            clock[0] += seconds
            experiment = function(*given, **options)
            if name == "build":
                experiment.texts.task.unlabelled["more"] = experiment.texts.task.validation
                experiment.texts.encoded["more"] = experiment.texts.encoded["validation"]
            return experiment

        monkeypatch.setattr(preflight, name, late)

    slow("load", 1e6)
    slow("build", 1e3)
    monkeypatch.setattr(preflight, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(preflight, "_cost", lambda *_: preflight.Cost(1e4, 1.0, 16))
    found = preflight.measure(config)
    assert found.program == 1e6 + 2 * 1e4
    # 8 steps, the evaluation after the last, and the predictions of `more`: 5 batches each
    assert (found.built, found.trained, found.steps) == (1e3, 8 + 5 + 5 + first * 5, 8)
