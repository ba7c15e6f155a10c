"""Runs that start from data: gathered once, recorded, kept for the run, and shared by its like."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_model

import lora_jax as lj
from configs import quickstart
from experiments.runs.run import run
from experiments.setup import from_data
from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.setup.load import load
from lora_jax import data

MATRICES = 12
"""Six in each of two layers."""

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    model = small_model.write(folder / "model")
    reviews = small_model.write_reviews(folder / "reviews", train=16, validation=8)

    def make(variant, **changes):
        made = quickstart.get_config(f"variant={variant},size=smoke")
        settings = {
            "model.name": str(model),
            "data.train": 0,
            "data.max_length": 8,
            "data.buckets": 1,
            "train.batch_size": 8,
            "train.init_batches": 2,
            "variant.rank": 2,
            **{f"data.{name}": value for name, value in reviews.items()},
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        made.update_from_flattened_dict(settings)
        return parse(made.to_dict())

    return make


@pytest.fixture
def once(monkeypatch, tmp_path):
    """Gathering, which may happen once; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gather, calls = lj.Adapted.gather, []

    def counted(*args, **kwargs):
        calls.append(args)
        return gather(*args, **kwargs)

    monkeypatch.setattr(lj.Adapted, "gather", counted)
    return calls


@pytest.mark.slow
def test_what_a_run_has_seen_is_recorded_kept_and_shared(config_of, once, tmp_path, monkeypatch):
    config = config_of("lora_ga")
    record = run(config, tmp_path / "first", audit=False)
    said: Any = record.gathered
    assert record.status == "completed"
    assert (said["batches"], said["examples"]) == (2, 16) and said["seconds"] > 0

    other = config_of("lora_ga", optimizer__learning_rate=1e-4)
    assert run(other, tmp_path / "other", audit=False).gathered == said
    assert len(once) == 1  # a trial of a sweep that agrees in what is seen

    (cached,) = (tmp_path / "cache").rglob("*/seen/*.safetensors")
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"it is made again: .*\.safetensors is damaged"):
        assert run(other, tmp_path / "third", audit=False).gathered["digest"] == said["digest"]
    assert len(once) == 2 and lj.load_seen(cached)
    tokenizer = Path(config.model.name) / "tokenizer_config.json"
    text = tokenizer.read_text(encoding="utf-8")
    tokenizer.write_text(f"{text} ", encoding="utf-8")  # another one, as far as its digest says
    run(config, tmp_path / "tokenizer", audit=False)
    assert len(once) == 3
    tokenizer.write_text(text, encoding="utf-8")
    once.clear()

    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "first" / "record.json").unlink()
    other = r"seen\.safetensors belongs to a run with other data; name another folder"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=other):
        patch.setattr(data.Task, "digest", lambda self: "of other data")
        run(config, tmp_path / "first", audit=False)
    assert run(config, tmp_path / "first", audit=False).gathered == said
    assert not once  # the run goes on with what it has in its folder


@pytest.mark.slow
def test_a_run_records_the_ranks_that_eva_gives_and_sees_no_padding(config_of, once, tmp_path):
    """Two sentences in a batch of four, in two parts, are seen as each alone without padding."""
    two: Any = {"data__train": 2, "data__max_length": 48}
    config = config_of("eva", **two, train__batch_size=4, train__accumulate=2)
    record = run(config, tmp_path / "run", audit=False)
    ranks: Any = record.ranks
    flat = np.concatenate([np.ravel(each) for each in ranks.values()])
    assert record.status == "completed" and flat.sum() == 2 * MATRICES and flat.max() > 2
    seen, said = lj.load_seen(tmp_path / "run" / "seen.safetensors")
    assert said == record.gathered and {*ranks} <= {*seen}

    config = config_of("eva", **two, train__batch_size=1)
    loaded = load(config)
    lengths = sorted(loaded.texts.encoded["train"].lengths.tolist())
    texts = dataclasses.replace(loaded.texts, boundaries=tuple(lengths))
    alone: Any = build(config, dataclasses.replace(loaded, texts=texts)).gathered
    assert lengths[0] < lengths[1] and (said["examples"], alone.said["examples"]) == (4, 2)
    for path, mine in seen.items():
        for name in ("variances", "variance", "mean", "magnitude"):
            got, wanted = getattr(mine, name), getattr(alone.seen[path], name)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_oldest_files_of_the_cache_make_room(tmp_path):
    """However they are named; two of 10 bytes fit into 25."""
    for age, name in enumerate(["b", "c", "a"]):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    from_data.keep_newest(tmp_path, 25)
    assert {path.stem for path in tmp_path.iterdir()} == {"b", "c"}
