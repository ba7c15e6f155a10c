"""Our DeBERTa beside transformers', both running: outputs, gradients, files in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import encode_and_run
from flax import nnx
from make_fixtures.bert import random_tensors, save_checkpoint
from make_fixtures.deberta import deberta_inputs
from published_names import to_torch_names, torch_names

import lora_jax as lj
import variants
from lora_jax.models.families.deberta_v2 import relative_indices
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_classifier

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures.bert import torch_outputs  # noqa: E402
from make_fixtures.deberta import torch_random_deberta  # noqa: E402

pytestmark = pytest.mark.parity

ACTIVATIONS = ("gelu", "gelu_new", "relu", "tanh")


def random_config(seed):
    """Any combination of the features; v3's and v2's own in the first four."""
    random = np.random.RandomState(3000 + seed)

    def one(*choices):
        return choices[random.randint(len(choices))]

    heads = int(random.randint(1, 5))
    hidden = heads * int(random.randint(1, 6)) * 2
    published = seed < 4
    positions = int(random.randint(8, 40))
    return {
        "model_type": "deberta-v2",
        "vocab_size": int(random.randint(20, 90)),
        "hidden_size": hidden,
        "embedding_size": hidden if published else one(hidden, int(random.randint(2, 20))),
        "num_hidden_layers": int(random.randint(1, 5)),
        "num_attention_heads": heads,
        "intermediate_size": int(random.randint(3, 50)),
        "max_position_embeddings": positions,
        "type_vocab_size": 0 if published else int(random.randint(0, 4)),
        "pad_token_id": int(random.randint(0, 6)),
        "hidden_act": one(*ACTIVATIONS),
        "pooler_hidden_act": one(*ACTIVATIONS),
        "layer_norm_eps": float(10.0 ** -random.randint(2, 8)),
        "relative_attention": published or seed % 5 > 0,
        "position_buckets": one(2, 3, 4, 6, 10, positions - 2) if published else one(-1, 3, 4, 8),
        "max_relative_positions": one(-1, int(random.randint(8, 20))),
        "norm_rel_ebd": "layer_norm" if published else one("none", "layer_norm"),
        "share_att_key": True if published else one(True, False),
        "pos_att_type": "p2c|c2p" if published else one("p2c|c2p", "c2p|p2c", ["p2c"], ["c2p"]),
        "position_biased_input": False if published else one(True, False),
        "conv_kernel_size": (seed % 2) * 3 if published else one(0, 1, 3, 5),
        "conv_act": one(*ACTIVATIONS),
        "conv_groups": one(1, heads),
    }


def both(folder, seed, num_labels, dtype):
    """The same random classifier on both sides; ours is read from a folder."""
    config = random_config(seed)
    theirs, shapes = torch_random_deberta(config, num_labels, seed)
    save_checkpoint(folder, config, random_tensors(shapes, seed))
    options = {"num_labels": num_labels, "pool": "cls", "param_dtype": dtype}
    ours, fresh = load_classifier(folder, key=jax.random.key(0), **options)
    assert fresh == ()
    return config, theirs, ours


def assert_close(got, expected, mask, atol):
    """But on padding, which nothing reads, and for rows without a first token."""
    np.testing.assert_allclose(got[0][mask == 1], expected[0][mask == 1], atol=atol)
    rows = mask[:, 0] == 1
    np.testing.assert_allclose(got[1][rows], expected[1][rows], atol=atol)


# Between them they have each choice of `random_config`, where it acts.
@pytest.mark.parametrize("seed", [0, 1, 11, 13, 18, 31, 34, 50])
def test_outputs_in_float64(seed, tmp_path, x64):
    """Of rows beyond every bucket, where no absolute position ends them."""
    config, theirs, ours = both(tmp_path, seed, 1 + seed % 4, jnp.float64)
    longest = config["max_position_embeddings"] if config["position_biased_input"] else 70
    inputs = deberta_inputs(config, seed, longest)
    found = encode_and_run(ours, *inputs)
    assert_close(found, torch_outputs(theirs, *inputs), inputs[1], 1e-10)


@pytest.mark.parametrize("seed", [1, 6, 8])
def test_outputs_and_exports_in_float32(seed, tmp_path):
    """Of short rows, on either side."""
    config, theirs, ours = both(tmp_path / "in", seed, 1 + seed % 4, jnp.float32)
    inputs = deberta_inputs(config, seed, 1 + seed % 8)
    truth = torch_outputs(theirs, *inputs)
    export_model(nnx.state(ours), ours.config, tmp_path / "out")
    auto = transformers.AutoModelForSequenceClassification
    again, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    for a, b in zip(torch_outputs(again.double().eval(), *inputs), truth, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    own = torch_outputs(theirs.float(), *inputs)
    # deep random nets amplify rounding: torch's own float32 is then as far from float64
    errors = [np.abs(a - b)[inputs[1][:, 0] == 1].max() for a, b in zip(own, truth, strict=True)]
    assert_close(encode_and_run(ours, *inputs), truth, inputs[1], max(1e-5, 4 * max(errors)))


@pytest.mark.parametrize("seed", [1, 13])
def test_gradients_in_float64(seed, tmp_path, x64):
    config, theirs, ours = both(tmp_path, seed, 3, jnp.float64)
    ids, mask, types = deberta_inputs(config, seed, 9 if config["position_biased_input"] else 20)
    whole = mask[:, 0] == 1
    ids, mask, types = (x[whole] for x in (ids, mask, types))
    labels = np.arange(len(ids)) % 3
    tensors = [torch.tensor(x, dtype=torch.long) for x in (ids, mask, types, labels)]
    # not with `labels`: its own loss takes the logits in float32
    logits = theirs(*tensors[:2], token_type_ids=tensors[2]).logits
    torch.nn.functional.cross_entropy(logits, tensors[3]).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    graph, params = nnx.split(ours)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = nnx.merge(graph, params)(ids, mask, types)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    gradients = to_torch_names(gradient(params), ours.config)
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        theirs_value = 0.0 if expected[name] is None else expected[name].numpy()
        if name == "deberta.embeddings.word_embeddings.weight":
            # torch never trains the row of the padding id; here it is a row like any other
            value, theirs_value = (
                np.delete(x, config["pad_token_id"], axis=0) for x in (value, theirs_value)
            )
        np.testing.assert_allclose(value, theirs_value, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("seed", range(12))
def test_relative_indices(seed):
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    random = np.random.RandomState(seed)
    buckets, positions, tokens = ((256, 512, 512), (256, 512, 700), (32, 512, 300))[seed % 3]
    if seed > 2:
        positions, tokens = int(random.randint(8, 300)), int(random.randint(1, 400))
        buckets = int(random.randint(2, positions - 2))
    span = buckets
    sizes = torch.zeros(1, tokens, 1)
    table = build_relative_position(sizes, sizes, buckets, positions)[0]
    table = torch.clamp(table + span, 0, 2 * span - 1).numpy()
    ours = relative_indices(tokens, span, buckets, positions)
    distances = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    np.testing.assert_array_equal(ours[distances + tokens - 1], table)


def test_we_load_what_torch_saves(tmp_path):
    """As the published DeBERTa checkpoints are: pytorch_model.bin, in float16."""
    config = random_config(3)
    theirs, _ = torch_random_deberta(config, 2, 3)
    tensors = {**theirs.half().state_dict(), "lm_predictions.lm_head.bias": torch.zeros(3)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    options = {"num_labels": 2, "pool": "cls", "key": jax.random.key(0)}
    ours, fresh = load_classifier(tmp_path, **options)
    assert fresh == ()
    inputs = deberta_inputs(config, 3, 9)
    expected = torch_outputs(theirs.double(), *inputs)
    assert_close(encode_and_run(ours, *inputs), expected, inputs[1], 2e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("seed", [1, 7])
def test_lora_equals_peft(seed, tmp_path, x64):
    """Shared query and key projections (seed 1) project relative embeddings adapted too."""
    peft = pytest.importorskip("peft")
    config, theirs, ours = both(tmp_path, seed, 3, jnp.float64)
    names = ("query", "key", "value")
    targets = [f"{name}_proj" for name in names]
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets)
    wrapped = peft.get_peft_model(theirs, settings).double().eval()
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(generator=generator)
            module, _, kind = name.removeprefix("base_model.model.").partition(".lora_")
            tensor = parameter.detach().numpy()
            factors[f"{module}.weight", kind[0].lower()] = tensor.T if kind[0] == "B" else tensor
    inputs = deberta_inputs(config, seed, 8)
    tensors = [torch.tensor(x, dtype=torch.long) for x in inputs]
    with torch.no_grad():
        expected = wrapped(*tensors[:2], token_type_ids=tensors[2]).logits.numpy()

    forward, params = lj.from_nnx(ours)
    arguments = tuple(map(jnp.asarray, inputs))
    patterns = [f"attention/{name}/kernel" for name in names]
    adapted = lj.adapt(forward, variants.make("lora", rank=2, alpha=6), patterns)
    fresh, frozen = adapted.init(jax.random.key(0), params, *arguments)
    adapters = {
        path: {
            kind: jnp.stack([factors.pop((name, kind)) for name in torch_names(path, ours.config)])
            for kind in each
        }
        for path, each in fresh["adapters"].items()
    }
    assert not factors
    found = jax.jit(adapted.apply)({**fresh, "adapters": adapters}, frozen, *arguments)
    rows = inputs[1][:, 0] == 1
    np.testing.assert_allclose(found[rows], expected[rows], atol=1e-10)
    assert not np.allclose(found[rows], ours(*arguments)[rows], atol=1e-2)
