"""Our decoders beside transformers', both running: logits, gradients, files in both directions."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cached_chunks import alone, chunks, in_chunks
from flax import nnx
from make_fixtures.bert import save_checkpoint
from make_fixtures.decoders import CASES, random_inputs, random_tensors
from packed_rows import pack
from published_names import to_torch_names
from small_decoder import functional

from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures.decoders import exactly, torch_logits, torch_random  # noqa: E402

pytestmark = pytest.mark.parity

SCALINGS = (
    None,
    {"type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 30,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 600},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 500,
        "truncate": False,
        "attention_factor": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
)


def random_config(kind, seed):
    random = np.random.RandomState(2000 + seed)
    groups = int(random.randint(1, 4))
    heads = groups * int(random.randint(1, 4))
    sizes = {"model_type": kind, "vocab_size": int(random.randint(20, 60))}
    tied = bool(random.randint(2))
    if kind == "gpt2":
        return {
            **sizes,
            "n_positions": 40,
            "n_embd": heads * int(random.randint(2, 8)),
            "n_layer": int(random.randint(1, 5)),
            "n_head": heads,
            "n_inner": [None, 13][random.randint(2)],
            "activation_function": ["gelu_new", "relu", "gelu"][random.randint(3)],
            "layer_norm_epsilon": float(10.0 ** -random.randint(2, 8)),
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    config = {
        **sizes,
        "hidden_size": heads * int(random.randint(2, 6)),
        "intermediate_size": int(random.randint(3, 40)),
        "num_hidden_layers": int(random.randint(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 2 * int(random.randint(2, 9)),
        "max_position_embeddings": 64,
        "rms_norm_eps": float(10.0 ** -random.randint(2, 8)),
        "hidden_act": ["silu", "gelu_pytorch_tanh"][random.randint(2)],
        "tie_word_embeddings": tied,
        "rope_theta": float(random.randint(20, 20000)),
    }
    if kind == "llama":
        config["rope_scaling"] = SCALINGS[seed % len(SCALINGS)]
        config["attention_bias"], config["mlp_bias"] = seed % 2 == 0, seed % 3 == 0
    elif kind == "qwen3":
        config["attention_bias"] = seed % 2 == 0
    if kind == "mistral":
        config["sliding_window"] = [None, 2, 4][seed % 3]
    elif kind == "qwen2":
        del config["head_dim"]  # its attention has it from the sizes
        config["hidden_size"] = 2 * heads * int(random.randint(2, 4))
    if kind.startswith("qwen") and seed % 2:
        window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
        config |= window
    return config


# Between them they have each choice of `random_config`, where it acts.
SEEDS = {
    "llama": (0, 1, 2, 3, 4, 5),
    "mistral": (0, 1, 2),
    "qwen2": (0, 1, 21),
    "qwen3": (0, 1, 21),
    "gpt2": (0, 3, 4),
}
CONFIGS = [(kind, seed) for kind, seeds in SEEDS.items() for seed in seeds]


def both(folder, kind, seed, dtype):
    """The same random decoder on both sides; ours is read from a folder."""
    config = random_config(kind, seed)
    theirs, shapes = torch_random(config, seed)
    save_checkpoint(folder, config, random_tensors(shapes, seed))
    return config, theirs, load_decoder(folder, param_dtype=dtype)


@pytest.mark.parametrize(("kind", "seed"), CONFIGS)
def test_logits_in_float64(kind, seed, tmp_path, x64):
    """In one call, with and without a mask, and through the cache, padded on either side."""
    config, theirs, ours = both(tmp_path, kind, seed, jnp.float64)
    ids, mask, positions = random_inputs(config, seed, tokens=12)
    parts, masks = chunks(seed, words=20)
    whole, there, real = alone(parts, masks)
    graph, params = nnx.split(ours)

    @jax.jit
    def run(params):
        ours = nnx.merge(graph, params)
        padded = ours(ids, jnp.asarray(mask), positions=jnp.asarray(positions))
        return padded, ours(ids), in_chunks(ours, parts, masks, 11)[0]

    padded, plain, chunked = run(params)
    expected = torch_logits(theirs, ids, mask, positions)
    np.testing.assert_allclose(padded[mask == 1], expected[mask == 1], atol=1e-10)
    np.testing.assert_allclose(plain, torch_logits(theirs, ids), atol=1e-10)
    expected = torch_logits(theirs, whole, there)[there == 1]
    np.testing.assert_allclose(chunked[real], expected, atol=1e-10)


def assert_close(ours, theirs):
    """Of float32: to 1e-5 of the largest logit, where both are rounded."""
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def assert_equal(ours, again):
    chex.assert_trees_all_equal(nnx.state(ours), nnx.state(again))


# Each family, and each scaling, whose frequencies are rounded.
IN_FLOAT32 = [*CONFIGS[:6], ("mistral", 1), ("qwen2", 1), ("qwen3", 1), ("gpt2", 3)]


@pytest.mark.parametrize(("kind", "seed"), IN_FLOAT32)
def test_logits_and_files_in_float32(kind, seed, tmp_path):
    """Against transformers as everyone runs it; then both read the other's files, of any size."""
    config, theirs, ours = both(tmp_path / "in", kind, seed, jnp.float32)
    params, apply = functional(ours)
    ids, mask, positions = random_inputs(config, seed, tokens=12)
    logits = np.asarray(apply(params, ids, mask, positions=positions))[mask == 1]
    theirs = theirs.float()
    assert_close(logits, torch_logits(theirs, ids, mask, positions)[mask == 1])

    for number, sharded in enumerate((False, True)):
        folder = tmp_path / f"ours{number}"
        export_model(params, ours.config, folder, **({"shard_bytes": 400} if sharded else {}))
        assert (folder / "model.safetensors").exists() != sharded
        auto = transformers.AutoModelForCausalLM
        again, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert_close(logits, torch_logits(again.eval(), ids, mask, positions)[mask == 1])

        folder = tmp_path / f"theirs{number}"
        theirs.save_pretrained(folder, max_shard_size=400 if sharded else "50GB")
        assert (folder / "model.safetensors").exists() != sharded
        assert_equal(ours, load_decoder(folder))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_gradients_in_float64(kind, tmp_path, x64):
    config, theirs, ours = both(tmp_path, kind, 1, jnp.float64)
    ids, _, _ = random_inputs(config, 1)
    labels = torch.tensor(ids, dtype=torch.long)
    with exactly():
        logits = theirs(input_ids=labels, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # the model's own loss would be of float32
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    graph, params = nnx.split(ours)

    @jax.jit
    @jax.grad
    def gradient(params):
        log_p = jax.nn.log_softmax(nnx.merge(graph, params)(ids)[:, :-1])
        return -jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 1:, None], -1).mean()

    found = to_torch_names(gradient(params), ours.config)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-10, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_packed_rows(kind, tmp_path, x64):
    """transformers takes positions that start again for packed documents."""
    config, theirs, ours = both(tmp_path, kind, 1, jnp.float64)
    random = np.random.RandomState(0)
    documents = [random.randint(0, config["vocab_size"], size) for size in (6, 3, 5, 4, 8)]
    packed = pack(documents, [(0, 1, 2), (3, 4)], 14)
    assert (packed.segments[0] > 0).all()
    rows = slice(0, 1)  # the second has padding, which is a document of its own to neither
    expected = torch_logits(theirs, packed.ids[rows], positions=packed.positions[rows])
    logits = functional(ours)[1](
        nnx.state(ours), jnp.asarray(packed.ids[rows]), segments=jnp.asarray(packed.segments[rows])
    )
    np.testing.assert_allclose(logits, expected, atol=1e-10)


@pytest.mark.parametrize("name", list(CASES))
def test_transformers_reads_our_configs_as_we_do(name, tmp_path):
    """What is written for one version of transformers means the same to this one."""
    content = load_config(name)
    (tmp_path / "config.json").write_text(json.dumps(content.to_json()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(content).from_json(theirs.to_dict()) == content


def load_config(name):

    return families.read(CASES[name])
