"""The lines of Python in a model card, as a reader runs them."""

import jax
import numpy as np
import pytest
import small_language
import text_runs
from completed_run import completed

import lora_jax as lj
from experiments.exports.base_and_head import Place
from experiments.exports.formats import Merged, Peft
from experiments.runs.finished_run import FinishedRun
from lora_jax.models.published.load import load_decoder
from lora_jax.records import run_record

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize("format", [Merged(), Peft()], ids=["merged", "peft"])
def test_the_code_of_a_card_loads_the_model(format, tmp_path):
    places = small_language.write_places(tmp_path)
    folder, experiment, trainable = completed(text_runs.config(places), tmp_path / "run")
    record = run_record.read(folder)
    run = FinishedRun(folder, record, experiment, trainable, experiment.frozen)
    out = tmp_path / 'an "export"'
    out.mkdir()
    content = format.write(run, out)
    scope = {}
    exec(format.use(run, Place(str(out), here=True), content).code, scope)
    ids = scope["tokenizer"]("What colour has the sky?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = scope["model"].eval()(ids).logits.numpy()
    forward, _ = lj.from_nnx(load_decoder(experiment.config.model.name))
    params = experiment.adapted.merge(trainable, experiment.frozen)
    expected = jax.jit(forward)(params, ids.numpy().astype(np.int32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
