"""The scores of a run beside those of PEFT and torch: the same model, data, order and settings."""

import numpy as np
import pytest

from configs import quickstart
from experiments.setup.config import parse
from experiments.setup.experiment import build
from lora_jax.models.published.location import locate
from lora_jax.training import optim

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]
STEPS = 20
MODULES = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


class Classifier(torch.nn.Module):
    """The encoder of the wheel, the mean over tokens, and a linear head."""

    def __init__(self, folder, outputs):
        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.classifier = torch.nn.Linear(self.encoder.config.hidden_size, outputs)

    def forward(self, batch):
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: torch.tensor(np.asarray(batch[name])).long() for name in names}
        mask = inputs["attention_mask"][..., None].float()
        hidden = self.encoder(**inputs).last_hidden_state
        return self.classifier((hidden * mask).sum(1) / mask.sum(1))


def under_peft(experiment):
    """The same start under PEFT: its base, its factors, its head."""
    folder = locate("minilm")
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=MODULES,
        modules_to_save=["classifier"],
    )
    model = peft.get_peft_model(Classifier(folder, 2).eval(), config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for path, factors in experiment.trainable["adapters"].items():
            kind = NAMES[path.split("/")[-2]]
            for layer in range(len(factors["a"])):
                where = f"base_model.model.encoder.encoder.layer.{layer}.{kind}"
                named[f"{where}.lora_A.default.weight"].copy_(tensor(factors["a"][layer]))
                named[f"{where}.lora_B.default.weight"].copy_(tensor(factors["b"][layer].T))
        head = experiment.trainable["params"]
        name = "base_model.model.classifier.modules_to_save.default"
        named[f"{name}.weight"].copy_(tensor(head["classifier/kernel"].T))
        named[f"{name}.bias"].copy_(tensor(head["classifier/bias"]))
    return model


def tensor(array):
    return torch.tensor(np.asarray(array))


def train_in_torch(model, experiment):
    """AdamW on clipped gradients by the same schedule; biases do not decay."""
    section = experiment.config.optimizer
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if not n.endswith("bias")], "weight_decay": 0.01},
        {"params": [p for n, p in trained if n.endswith("bias")], "weight_decay": 0.0},
    ]
    rate = optim.schedule("linear", section.learning_rate, STEPS, section.warmup_ratio)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step, batch in zip(range(STEPS), experiment.batches(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        loss = torch.nn.functional.cross_entropy(model(batch), tensor(batch["label"]).long())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_scores_on_real_data():
    """Steps of a real encoder on real sentences, all as long, then on others.

    In float32, whose rounding (1e-7 of the first losses) AdamW makes more of.
    """
    config = quickstart.get_config()
    config.update({"train": {"max_steps": STEPS, "batch_size": 8}})
    config.update({"variant": {"rank": 8, "alpha": 16.0}})
    config.update({"data": {"train": 256, "validation": 64, "buckets": 1, "max_length": 24}})
    experiment = build(parse(config.to_dict()))
    model = under_peft(experiment)
    step, state, losses = experiment.make_step(), experiment.start(), []
    for batch, _ in zip(experiment.batches(0), range(STEPS), strict=False):
        state, values = step(state, experiment.frozen, batch)
        losses.append(float(values["loss"]))
    expected = train_in_torch(model, experiment)
    np.testing.assert_allclose(losses[:5], expected[:5], rtol=5e-6)
    np.testing.assert_allclose(losses, expected, rtol=3e-4)

    predict = experiment.adapted_call
    before, ours = (
        experiment.predictions(predict(each), "validation")["validation"]
        for each in (experiment.trainable, state.trainable)
    )
    with torch.no_grad():
        theirs = experiment.outputs(lambda b: model(b).numpy(), "validation")
    np.testing.assert_allclose(ours, theirs, atol=5e-4)
    assert np.abs(ours - before).max() > 0.05  # training matters
    right, theirs_right = (
        (each.argmax(1) == experiment.texts.task.validation.labels).sum() for each in (ours, theirs)
    )
    assert abs(right - theirs_right) <= 1  # one sentence may lie between two roundings
