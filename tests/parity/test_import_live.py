"""A classifier that PEFT has saved, as a run: its scores are those that torch computes."""

import numpy as np
import pytest
import small_model

from experiments.imports import adapter_source, imported_run
from experiments.imports.adapter_source import read_adapter
from experiments.setup.load import load

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def test_scores_are_torchs(tmp_path):
    smoke = small_model.smoke_runs(tmp_path / "small")
    base = smoke().model.name
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(base, num_labels=2).save_pretrained(base)  # with a pooler, too
    settings = {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["query", "value"]}
    lora = peft.LoraConfig(task_type="SEQ_CLS", rank_pattern={r"layer\.1\..*": 2}, **settings)
    model = peft.get_peft_model(kind.from_pretrained(base), lora).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    model.save_pretrained(str(tmp_path / "adapter"))

    config = smoke(model__pool="cls")
    loaded = load(config)
    found = read_adapter(adapter_source.find(str(tmp_path / "adapter")), config, loaded)
    assert not imported_run.drawn(loaded, found)
    own = imported_run.config_of(config.plain, found)
    assert own.variant.name == "dora"
    run = imported_run.experiment_of(own, loaded, found)
    encoded, labels = run.texts.encoded["validation"], run.texts.labels("validation")
    rows = run.texts.collate(encoded, np.arange(len(encoded)), 24, len(encoded))
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        logits = model(**{name: torch.tensor(rows[name]).long() for name in names}).logits
    entropy = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
    scores = run.score(run.adapted_call(run.trainable))
    assert scores["eval_loss"] == pytest.approx(float(entropy), rel=1e-5)
    right = logits.argmax(1).numpy() == labels
    assert scores["accuracy"] == pytest.approx(right.mean())
