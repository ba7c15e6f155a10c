"""Adapted models, merged and exported, beside transformers' own loading of the folder."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import drawn
from flax import nnx
from make_fixtures import bert, deberta
from make_fixtures.decoders import CASES as DECODERS
from small_decoder import random_decoder, random_ids
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.data import load_tokenizer
from lora_jax.data.tokenizing.tokenize import export_tokenizer
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_decoder
from lora_jax.models.published.location import locate
from lora_jax.transform.adapt import merged_parts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures.decoders import exactly  # noqa: E402

pytestmark = pytest.mark.parity

LABELS = ("no", "maybe", "yes")
CLASSIFIERS = {
    "bert": bert.CASES["bert"][0],
    "roberta": bert.CASES["roberta_other_pad"][0],
    **{f"deberta/{name}": deberta.CASES[name][0] for name in ("v3", "v2")},
}


def classifier(name, dtype):
    content = CLASSIFIERS[name]
    family = families.family_of(content)
    config = family.config.from_json(content)
    options = {"num_labels": 3, "pool": "cls", "param_dtype": dtype}
    return drawn(lambda: family.model(config, **options, rngs=nnx.Rngs(0)))


def adapted_by(method, model, *inputs, **options):
    """The adapted model's outputs, and its parts, merged; its factors are random."""
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, method, "layers/.*kernel", **options)
    trainable, frozen = adapted.init(jax.random.key(1), params, *inputs)
    # Small ones: larger updates make these models amplify what float32 rounds.
    trainable = jax.tree.map(lambda x, y: x + 0.1 * y, trainable, random_like(trainable, 1))
    return np.asarray(jax.jit(adapted.apply)(trainable, frozen, *inputs)), trainable, frozen


def loaded(auto, folder, dtype):
    """transformers' model of a folder, none of whose tensors is missing or left over."""
    exact = exactly() if dtype == jnp.float64 else contextlib.nullcontext()
    kind = torch.float64 if dtype == jnp.float64 else torch.float32
    with exact:
        model, report = auto.from_pretrained(
            folder, dtype=kind, attn_implementation="eager", output_loading_info=True
        )
    assert not any(report.values()), report
    return model.eval()


def logits(model, **inputs):
    exact = exactly() if model.dtype == torch.float64 else contextlib.nullcontext()
    tensors = {name: torch.tensor(np.asarray(x), dtype=torch.long) for name, x in inputs.items()}
    with torch.no_grad(), exact:
        return model(**tensors).logits.numpy()


def assert_same(found, expected, dtype):
    bound = 1e-10 if dtype == jnp.float64 else 1e-5 * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(found, expected, atol=bound, rtol=0)


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


def in_dtypes(names, also_single):
    """Every family in float64, which tells the smallest difference, and one in float32 as well."""
    pairs = [*((name, "float64") for name in names), (also_single, "float32")]
    return pytest.mark.parametrize("name, dtype", pairs, indirect=["dtype"])


@in_dtypes(CLASSIFIERS, also_single="bert")
def test_merged_classifiers(name, dtype, tmp_path):
    model = classifier(name, dtype)
    content = {**CLASSIFIERS[name], "type_vocab_size": 1}
    inputs = [each[:2] for each in bert.random_inputs(content, 0)]  # they begin with a token
    expected, *run = adapted_by(variants.make("dora", rank=2), model, *inputs)
    export_model(merged_parts(*run), model.config, tmp_path, labels=LABELS, shard_bytes=4000)
    auto = transformers.AutoModelForSequenceClassification
    theirs = loaded(auto, tmp_path, dtype)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert_same(logits(theirs, **dict(zip(names, inputs, strict=True))), expected, dtype)


@in_dtypes(DECODERS, also_single="llama")
def test_merged_decoders(name, dtype, tmp_path):
    model = random_decoder(name, options={"param_dtype": dtype})
    inputs = random_ids(tokens=12)
    expected, *run = adapted_by(variants.make("lora", rank=2), model, inputs)
    export_model(merged_parts(*run), model.config, tmp_path, shard_bytes=4000)
    theirs = loaded(transformers.AutoModelForCausalLM, tmp_path, dtype)
    assert_same(logits(theirs, input_ids=inputs), expected, dtype)


def test_a_merged_quantised_decoder_computes_what_the_run_did(tmp_path):
    model = random_decoder("llama", hidden_size=64)
    inputs = random_ids(tokens=12)
    stored = {"layers/.*kernel": lj.NF4()}
    expected, *run = adapted_by(variants.make("lora", rank=2), model, inputs, quantize=stored)
    export_model(merged_parts(*run), model.config, tmp_path)
    theirs = loaded(transformers.AutoModelForCausalLM, tmp_path, jnp.float32)
    assert_same(logits(theirs, input_ids=inputs), expected, jnp.float32)


def test_smollm2_of_a_gguf_file_becomes_a_folder(tmp_path):
    """Logits of the folder, and the ids of its tokenizer, by transformers."""
    source = locate("smollm2")
    model = load_decoder(source, param_dtype=jnp.bfloat16)
    export_model(nnx.state(model), model.config, tmp_path, source=source)
    export_tokenizer(source, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    own = load_tokenizer(source)
    text = "The Seine rises in Burgundy, and doesn't stop before 1910.\n  <|im_end|>"
    assert tokenizer(text)["input_ids"] == own.backend.encode(text).ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (own.bos_id, own.eos_id)
    chat = [{"role": "user", "content": "Hello"}]
    assert "<|im_start|>user\nHello" in tokenizer.apply_chat_template(chat, tokenize=False)
    theirs = loaded(transformers.AutoModelForCausalLM, tmp_path, jnp.float32)
    ids = np.array([own.backend.encode(text).ids], np.int32)
    found = logits(theirs, input_ids=ids)
    forward, params = lj.from_nnx(load_decoder(tmp_path))
    assert_same(found, np.asarray(jax.jit(forward)(params, ids)), jnp.float32)
