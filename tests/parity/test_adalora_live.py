"""AdaLoRA beside Hugging Face PEFT, both running: random settings, and where PEFT differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adalora_net import assert_follows
from make_fixtures.adalora import random_examples

from lora_jax.methods.rank_budget import best
from lora_jax.variant import Base
from variants.adalora import AdaLoRA

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from make_fixtures.adalora import adapted, net, trace  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def random_settings(random):
    rank = int(random.randint(2, 6))
    total = int(random.randint(8, 24))
    t_init = int(random.randint(0, total // 2))
    return {
        "init_r": rank,
        "target_r": int(random.randint(1, rank)),
        "lora_alpha": int(random.randint(1, 9)),
        "total_step": total,
        "tinit": t_init,
        "tfinal": int(random.randint(0, total - t_init)),
        "deltaT": int(random.randint(1, 5)),
        "beta1": float(random.uniform(0.3, 0.95)),
        "beta2": float(random.uniform(0.3, 0.95)),
        "orth_reg_weight": float(random.choice([0.0, 0.1, 0.5])),
    }


# Both depths, clipped or not, each weight of the penalty, and schedules with and without ends.
@pytest.mark.parametrize("seed", [0, 3, 4, 11])
def test_random_settings(seed, x64):
    config = random_settings(np.random.RandomState(seed))
    clip = 0.5 if seed % 2 else np.inf
    assert_follows(trace(config, 50 + seed, clip), config, clip)


def test_pefts_own_start_has_our_distribution():
    layer = torch.nn.ModuleDict({"w": torch.nn.Linear(400, 300)})
    config = peft.AdaLoraConfig(init_r=12, total_step=10, target_modules=["w"])
    theirs = peft.inject_adapter_in_model(config, layer)["w"]
    ours, _ = AdaLoRA().init(jax.random.key(0), Base(jnp.zeros((400, 300)), "io"))
    for name, tensor in {"a": theirs.lora_A, "b": theirs.lora_B}.items():
        tensor = tensor["default"].detach()
        assert ours[name].size == tensor.numel()
        assert abs(float(ours[name].std()) / float(tensor.std()) - 1) < 0.05
    assert not theirs.lora_E["default"].any() and not ours["e"].any()


# -- where PEFT differs ------------------------------------------------------------------------

CONFIG = {"init_r": 3, "target_r": 1, "total_step": 10, "tinit": 0, "tfinal": 0}


def test_peft_drops_more_than_its_budget_asks_for_where_scores_are_equal():
    model, config = net(0), {**CONFIG, "orth_reg_weight": 0.0}
    wrapped, adapters = adapted(model, config, 0)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.fill_(0.5)
            parameter.grad = torch.zeros_like(parameter)
    budget, pattern = wrapped.base_model.rankallocator.update_and_allocate(wrapped, 1)
    assert budget == 4 and not any(map(any, pattern.values()))
    ours = best({name: jnp.zeros(3) for name in pattern}, jnp.asarray(budget))
    assert sum(int(kept.sum()) for kept in ours.values()) == budget


def test_peft_fails_where_the_budget_does_not_fall(x64):
    config = {**CONFIG, "target_r": 3}
    with pytest.raises(RuntimeError, match="selected number k out of range"):
        trace(config, 0)
    budget = AdaLoRA(rank=3, target_rank=3, total_steps=10).schedule.arrays(2, int)["budget"]
    assert budget.tolist() == [6] * 11


def test_peft_marks_a_part_of_its_scale_as_trainable():
    """`ranknum`; an optimiser of all that requires gradients changes it. Here it is a constant."""
    wrapped, _ = adapted(net(0), CONFIG, 0)
    trained = {name.split(".")[-2] for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "lora_E", "ranknum"}
    ours, constants = AdaLoRA().init(jax.random.key(0), Base(jnp.zeros((20, 20)), "io"))
    assert set(ours) == {"a", "b", "e"} and "scale" in constants


def test_peft_without_a_task_type_forgets_its_penalty():
    wrapped, _ = adapted(net(0), {**CONFIG, "orth_reg_weight": 0.5}, 0)
    x, t = (torch.tensor(each[0]) for each in random_examples(0, 1))
    plain, penalised = wrapped(x, t).loss, wrapped.base_model(x, t).loss
    assert penalised > plain + 0.5
