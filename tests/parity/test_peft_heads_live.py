"""PEFT's own loading of a head that is more than one layer, RoBERTa's."""

import json

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants

pytest.importorskip("torch")
pytest.importorskip("peft")
from peft_folders import MODELS, Pair, moved

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def test_robertas_head_is_saved_whole(tmp_path, x64):
    pair = Pair(MODELS["roberta"], tmp_path / "base")
    lora, head = variants.make("lora", rank=2), "(pooler|classifier)/.*"
    adapted = lj.adapt(pair.forward, lora, "query/kernel", also_train=head)
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path / "out", trainable, frozen, pair.names, task_type="SEQ_CLS")
    expected = pair.outputs(adapted, trainable, frozen)
    found = pair.loaded_by_peft(tmp_path / "out")
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - pair.plain()).max() > 1e-3


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_a_head_that_the_config_does_not_name_is_loaded(task, tmp_path, x64):
    """Without `modules_to_save`, PEFT puts such tensors into the model's own head."""
    pair = Pair(MODELS["roberta"], tmp_path / "base")
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    expected = pair.written_by_peft(tmp_path / "out", config)
    file = tmp_path / "out/adapter_config.json"
    written = {**json.loads(file.read_text()), "modules_to_save": None, "task_type": task}
    file.write_text(json.dumps(written))
    np.testing.assert_allclose(pair.loaded_by_peft(tmp_path / "out"), expected, atol=1e-10, rtol=0)
    found, loaded = pair.ours_from(tmp_path / "out")
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)
    assert "classifier/kernel" in loaded.trainable["params"]
