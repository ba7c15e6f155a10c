"""PEFT's folders in both directions, PEFT running: what one side writes, the other computes."""

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft_folders import BERT, Pair, moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def pair(tmp_path, x64):
    return Pair(BERT, tmp_path / "base")


def assert_close(got, expected, base):
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - base).max() > 1e-3  # the adapter matters


@pytest.mark.parametrize("method", ["lora"])
def test_peft_computes_what_we_write(method, pair, tmp_path):
    adapted = lj.adapt(pair.forward, variants.make(method, rank=2), "(query|up)/kernel")
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path / "out", trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    assert_close(pair.loaded_by_peft(tmp_path / "out"), expected, pair.plain())


@pytest.mark.parametrize("config", [{"peft_type": "LORA", "r": 3, "lora_alpha": 5}])
def test_we_compute_what_peft_writes(config, pair, tmp_path):
    config = {"target_modules": ["query", "intermediate.dense"], **config}
    expected = pair.written_by_peft(tmp_path / "out", config)
    got, _ = pair.ours_from(tmp_path / "out")
    assert_close(got, expected, pair.plain())
