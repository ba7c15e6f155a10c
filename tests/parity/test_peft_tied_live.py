"""Tables that are also the head, in PEFT's folders, PEFT running."""

import jax
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft_folders import MODELS, Pair, moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]


def trained_by_peft(pair, folder, config):
    """Write a folder with what PEFT ties still tied: its numbers move in place."""
    model = peft.get_peft_model(
        pair.fresh(), peft.get_peft_config(config), autocast_adapter_dtype=False
    )
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                draw = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
                parameter.add_(0.3 * draw)
    model.save_pretrained(str(folder))
    return pair.theirs(model)


# a model, and what its config of LoRA has; PEFT knows a table by the name `embed_tokens` alone,
# and so that of GPT-2 by its head
TIED = {
    "LoRA": ("llama_tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "rsLoRA": ("llama_tied", {"target_modules": ["lm_head"], "use_rslora": True}),
    "LoRA of one scale": (
        "llama_tied",
        {
            **{"target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 5},
            "rank_pattern": {"embed_tokens": 4, "lm_head": 2},
            "alpha_pattern": {"embed_tokens": 16, "lm_head": 8},
        },
    ),
    "LoRA, GPT-2": ("gpt2", {"target_modules": ["lm_head", "c_attn"], "lora_alpha": 3}),
    "whole": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "whole, GPT-2": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("case", TIED)
def test_what_peft_ties(case, tmp_path, x64):
    """Read from PEFT, written again, and read by PEFT."""
    family, config = TIED[case]
    pair = Pair(MODELS[family], tmp_path / "model")
    config = {"peft_type": "LORA", "r": 2, "ensure_weight_tying": True, **config}
    expected = trained_by_peft(pair, tmp_path / "theirs", config)
    assert np.abs(expected - pair.plain()).max() > 1e-3
    got, loaded = pair.ours_from(tmp_path / "theirs")
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    lj.save_peft(tmp_path / "ours", *loaded[1:3], pair.names)
    again = pair.loaded_by_peft(tmp_path / "ours")
    np.testing.assert_allclose(again, expected, atol=1e-10, rtol=0)


def test_peft_saves_a_tied_table_with_any_method(tmp_path, x64):
    """HiRA's config has no `ensure_weight_tying`; PEFT has two equal modules then."""
    pair = Pair(MODELS["llama_tied"], tmp_path / "model")
    hira = variants.make("hira", rank=2)
    adapted = lj.adapt(pair.forward, hira, "query/kernel", also_train="embedding/embedding")
    trainable, frozen = adapted.init(jax.random.key(0), pair.params, *pair.inputs)
    trainable = moved(trainable)
    lj.save_peft(tmp_path / "ours", trainable, frozen, pair.names)
    expected = pair.outputs(adapted, trainable, frozen)
    got = pair.loaded_by_peft(tmp_path / "ours")
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
