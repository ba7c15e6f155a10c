"""A study trains runs together as far as they fit into memory; `jobs.train` is stood in for."""

import dataclasses

import fake_records
import pytest
from quickstart_sweep import made

from experiments.analysis.recorded_runs import settings_of
from experiments.runs.announce import TooManyTrialsError
from experiments.runs.group_folder import GroupFolder
from experiments.studies.protocol import Protocol, Rates, Tuning
from experiments.studies.training import Cell, Trainer, cell_digest
from experiments.sweeps import jobs

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def seeds(count):
    """The protocol of a study of so many seeds."""
    rates, tuning = Rates(per_decade=2, around=1, most_more=0), Tuning(held_out=2, seeds=(9,))
    own = {"rates": rates, "tuning": tuning, "seeds": tuple(range(count)), "margin": 1.0}
    return Protocol(rows=("lora",), columns=("sst2",), reference="lora", **own)


def config(seed, optimizer__learning_rate, data__draw):
    """That of a run; nothing but seeds differs between them."""
    given = f"config.seed={seed}", f"config.data.draw={data__draw}"
    return made(*given, f"config.optimizer.learning_rate={optimizer__learning_rate}")[0].config


class Memory:
    """Has room for so many runs at a time, and notes which trained together."""

    def __init__(self, room):
        self.room, self.trained, self.said = room, [], []

    def train(self, configs, folders, names, how):
        if len(configs) > self.room:
            return [TooManyTrialsError("too many")] * len(configs)
        self.trained.append([int(name) for name in names])
        return [
            fake_records.write(folder, "quickstart", "size=smoke", {}, changes={"seed": int(name)})
            for folder, name in zip(folders, names, strict=True)
        ]

    def seeds(self, tmp_path, monkeypatch, count):
        """Train the seeds of a study."""
        monkeypatch.setattr(jobs, "train", self.train)
        trainer = Trainer(tmp_path, seeds(count), say=self.said.append)
        trainer.seeds(Cell("sst2", "lora", config, 1e-3), 1e-3)


def test_runs_that_do_not_fit_into_memory_together_train_apart(tmp_path, monkeypatch):
    memory = Memory(room=3)
    memory.seeds(tmp_path, monkeypatch, 12)
    assert memory.trained == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9], [10, 11]]
    apart = [each for each in memory.said if "do not fit into memory" in each]
    assert [each.split(": ")[1].split()[0] for each in apart] == ["10", "5", "5"]


def test_a_study_goes_on_with_the_parts_that_have_checkpoints(tmp_path, monkeypatch):
    """Though there is room for more by now: checkpoints are of the runs that trained together."""
    runs, own = tmp_path / "sst2" / "runs" / "lora", []
    for part in ([5, 6], [7, 8, 9]):  # of the ten at first
        each = [config(n, 1e-3, n) for n in part], [runs / str(n) for n in part]
        own.append(GroupFolder.of(*each))
    own[1].path.mkdir(parents=True)
    own[1].begin([0, 1, 2])
    memory = Memory(room=10)
    memory.seeds(tmp_path, monkeypatch, 10)
    assert memory.trained == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert not own[0].path.exists()


def test_a_study_goes_on_with_a_run_that_trained_by_itself(tmp_path, monkeypatch):
    (tmp_path / "sst2" / "runs" / "lora" / "1" / "checkpoints").mkdir(parents=True)
    memory = Memory(room=10)
    memory.seeds(tmp_path, monkeypatch, 2)
    assert memory.trained == [[0], [1]]


def test_checkpoints_of_runs_that_do_not_fit_any_more_are_not_left_behind(tmp_path, monkeypatch):
    memory = Memory(room=3)
    configs = [config(seed, 1e-3, seed) for seed in range(10)]
    folders = [tmp_path / "sst2" / "runs" / "lora" / str(seed) for seed in range(10)]
    home = GroupFolder.of(configs, folders)
    home.begin(range(10))
    (home.path / "checkpoints" / "5").mkdir(parents=True)
    said = r"has checkpoints of these 10 runs, .* \(too many\): free memory and give the same"
    with pytest.raises(ValueError, match=f"^{home.path} {said}"):
        memory.seeds(tmp_path, monkeypatch, 10)
    assert memory.trained == [] and home.trials == [*range(10)]

    (home.path / "checkpoints" / "5").rmdir()  # as if killed before the first save
    memory.seeds(tmp_path, monkeypatch, 10)
    assert len(memory.trained) == 4 and not home.path.exists()


def with_another(plain, path):
    """A config as plain data, with another value of the setting at a path, and of no other one."""
    name, _, rest = path.partition(".")
    value = plain[name]
    new = with_another(value, rest) if rest else f"other than {value}"
    return {**plain, name: new}


def test_only_what_runs_of_a_cell_may_differ_in_is_no_part_of_it():
    of_runs = {"optimizer.learning_rate", "data.validation", "seed", "data.draw"}
    first = config(1, 1e-3, 2)
    names = of_runs | settings_of(first).keys()
    assert len(names) > 40
    for name in names - {"start_from"}:
        other = dataclasses.replace(first, plain=with_another(first.plain, name))
        assert (cell_digest(other) == cell_digest(first)) == (name in of_runs), name
