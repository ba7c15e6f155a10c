"""Our encoders beside transformers', both running: outputs, gradients, files in both directions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import encode_and_run
from flax import nnx
from make_fixtures.bert import random_inputs, random_tensors, save_checkpoint
from published_names import to_torch_names

from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_classifier
from lora_jax.models.published.location import locate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures.bert import torch_outputs, torch_random  # noqa: E402

pytestmark = pytest.mark.parity

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


def random_config(seed):
    random = np.random.RandomState(1000 + seed)
    heads = int(random.randint(1, 5))
    roberta = seed % 2 == 1
    return {
        "model_type": "roberta" if roberta else "bert",
        "vocab_size": int(random.randint(20, 90)),
        "hidden_size": heads * int(random.randint(2, 12)),
        "num_hidden_layers": int(random.randint(1, 5)),
        "num_attention_heads": heads,
        "intermediate_size": int(random.randint(3, 50)),
        "max_position_embeddings": int(random.randint(24, 40)),
        "type_vocab_size": int(random.randint(1, 4)),
        "pad_token_id": int(random.randint(0, 6)),
        "hidden_act": ACTIVATIONS[random.randint(len(ACTIVATIONS))],
        "layer_norm_eps": float(10.0 ** -random.randint(2, 13)),
    }


def both(folder, seed, num_labels, dtype):
    """The same random classifier on both sides; ours is read from a folder."""
    config = random_config(seed)
    theirs, shapes = torch_random(config, num_labels, seed)
    save_checkpoint(folder, config, random_tensors(shapes, seed))
    options = {"num_labels": num_labels, "pool": "cls", "param_dtype": dtype}
    ours, fresh = load_classifier(folder, key=jax.random.key(0), **options)
    assert fresh == ()
    return config, theirs, ours


def assert_equal(ours, again, fresh):
    """Every parameter of both, bit by bit, with none left as it was made."""
    assert fresh == ()
    chex.assert_trees_all_equal(nnx.state(ours), nnx.state(again))


# Between them they have each activation, family, number of labels and kind of embeddings.
@pytest.mark.parametrize("seed", [0, 2, 8, 11, 13])
def test_outputs_and_files_in_float32(seed, tmp_path):
    """Outputs from either side's files, in one file and in several."""
    config, theirs, ours = both(tmp_path / "in", seed, 1 + seed % 4, jnp.float32)
    inputs = random_inputs(config, seed, batch=5, tokens=(2, 8, 18)[seed % 3])
    hidden, logits = encode_and_run(ours, *inputs)
    for found, expected in zip((hidden, logits), torch_outputs(theirs, *inputs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    export_model(nnx.state(ours), ours.config, tmp_path / "out")
    auto = transformers.AutoModelForSequenceClassification
    again, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.num_labels == 1 + seed % 4
    np.testing.assert_allclose(logits, torch_outputs(again.double().eval(), *inputs)[1], atol=1e-5)
    for shard in ("50GB", "2KB"):
        folder = tmp_path / shard
        theirs.float().save_pretrained(folder, max_shard_size=shard)
        assert (folder / "model.safetensors").exists() == (shard == "50GB")
        options = {"num_labels": 1 + seed % 4, "pool": "cls", "key": jax.random.key(0)}
        assert_equal(ours, *load_classifier(folder, **options))


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_in_float64(seed, tmp_path, x64):
    config, theirs, ours = both(tmp_path, seed, 3, jnp.float64)
    ids, mask, types = random_inputs(config, seed)
    labels = np.arange(len(ids)) % 3
    tensors = [torch.tensor(x, dtype=torch.long) for x in (ids, mask, types, labels)]
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    theirs(**dict(zip(names, tensors, strict=True))).loss.backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    # torch never trains the row of the padding id; here it is a row like any other
    pads = [f"{config['model_type']}.embeddings.word_embeddings.weight"]
    if config["model_type"] == "roberta":
        pads.append("roberta.embeddings.position_embeddings.weight")

    graph, params = nnx.split(ours)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = nnx.merge(graph, params)(ids, mask, types)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    gradients = to_torch_names(gradient(params), ours.config)
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        rows = np.arange(len(value)) != (config["pad_token_id"] if name in pads else -1)
        np.testing.assert_allclose(value[rows], expected[name][rows], atol=1e-11, err_msg=name)


def test_minilm_on_its_real_weights():
    folder = locate("minilm")
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    ours = load_classifier(folder, num_labels=2, pool="mean", key=jax.random.key(0)).model
    config = {"vocab_size": 30522, "pad_token_id": 0, "type_vocab_size": 2}
    ids, mask, types = random_inputs(config, 0, batch=6, tokens=32)
    hidden, _ = torch_outputs(theirs, ids, mask, types)
    got, _ = encode_and_run(ours, ids, mask, types)
    tokens = mask == 1  # on padding, which nothing reads, torch's own float32 is off by 2e-5
    np.testing.assert_allclose(got[tokens], hidden[tokens], atol=1e-5)


def test_transformers_reads_the_encoder_of_a_mean_pooled_export(tmp_path):
    config, theirs, _ = both(tmp_path / "in", 2, 2, jnp.float32)
    options = {"num_labels": 2, "pool": "mean", "key": jax.random.key(0)}
    ours = load_classifier(tmp_path / "in", **options).model
    export_model(nnx.state(ours), ours.config, tmp_path / "out")
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "out").double().eval()
    inputs = random_inputs(config, 2)
    np.testing.assert_allclose(
        torch_outputs(encoder, *inputs)[0], torch_outputs(theirs, *inputs)[0], atol=1e-5
    )
