"""Which patterns of a config each method of PEFT acts on: those that are read here."""

import json

import pytest

from lora_jax.interchange.peft_config import PATTERNS, compiled, of_module

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning")]

CONFIGS = {
    "LORA": {"r": 4, "lora_alpha": 3},
    "ADALORA": {"init_r": 4, "lora_alpha": 3, "total_step": 9, "tinit": 1, "tfinal": 1},
    "LOHA": {"r": 4, "alpha": 3},
    "LOKR": {"r": 4, "alpha": 3},
    "DELORA": {"r": 4, "delora_lambda": 15.0},
    "HIRA": {"r": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 5},
    "GRALORA": {"r": 4, "alpha": 3, "gralora_k": 2},
    "VERA": {"r": 4},
    "HRA": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"r": 4, "oft_block_size": 0},
    "RANDLORA": {"r": 4},
    "SHIRA": {"r": 1},
}


def in_peft(folder, config):
    """The shapes and the scale of PEFT's adapter of one layer."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    layer = peft.get_peft_model(net, peft.PeftConfig.from_pretrained(folder)).base_model.model[1]
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    shapes = {name: tuple(x.shape) for name, x in tensors}
    lambdas = [x.tolist() for name, x in tensors if name.startswith("delora_lambda")]
    return shapes, str(getattr(layer, "scaling", None)), lambdas


@pytest.mark.parametrize("kind", CONFIGS)
def test_patterns_that_a_method_acts_on(kind, tmp_path):
    config = {"peft_type": kind, "target_modules": ["0", "1"], **CONFIGS[kind]}
    plain, mine = in_peft(tmp_path, config), of_module(config, "1", compiled(config))
    for name in set(PATTERNS.values()):
        if (kind, name) == ("ADALORA", "rank_pattern"):
            continue  # a mask of rows, another thing
        other = {**config, name: {"1": 2}}
        read = of_module(other, "1", compiled(other))
        acts = any(read[field] != x for field, x in mine.items())
        assert acts == (in_peft(tmp_path, other) != plain), name
