"""PEFT's folders of real models, PEFT running: MiniLM and SmolLM2 in float32, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_fixtures.bert import random_inputs

import lora_jax as lj
import variants
from lora_jax.interchange.names import names_of
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_classifier, load_decoder
from lora_jax.models.published.location import locate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from peft_folders import Both, moved  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

_OPTIONS = {"dtype": torch.float32, "attn_implementation": "eager"}


class Real(Both):
    """A published model of one folder on both sides, in float32."""

    def __init__(self, auto, folder, forward, params, names, inputs):
        def fresh():
            return auto.from_pretrained(folder, **_OPTIONS)

        # larger updates make models amplify what float32 rounds
        super().__init__(fresh, forward, params, names, inputs, torch.float32, 0.03)

    def outputs(self, adapted, trainable, frozen):
        return np.asarray(jax.jit(adapted.apply)(trainable, frozen, *self.inputs))


def inputs_of(vocabulary, batch, tokens):
    sizes = {"vocab_size": vocabulary, "pad_token_id": 0, "type_vocab_size": 1}
    ids, mask, types = random_inputs(sizes, 0, batch, tokens)
    return tuple(map(jnp.asarray, (ids, mask, types)))


@pytest.fixture(scope="module")
def minilm_classifier(tmp_path_factory):
    """With a drawn head, which transformers reads, too."""
    source, folder = locate("minilm"), tmp_path_factory.mktemp("minilm")
    options = {"num_labels": 3, "pool": "cls", "key": jax.random.key(0)}
    model = load_classifier(source, **options).model
    export_model(nnx.state(model), model.config, folder, source=source)
    auto = transformers.AutoModelForSequenceClassification
    inputs = inputs_of(30522, 4, 24)
    return Real(auto, folder, *lj.from_nnx(model), names_of(model.config), inputs)


@pytest.fixture(scope="module")
def minilm_encoder():
    folder = locate("minilm")
    model = load_classifier(folder, num_labels=2, pool="mean", key=jax.random.key(0)).model
    graph, params = nnx.split(model)

    def forward(params, ids, mask, types):
        hidden = nnx.merge(graph, params).encode(ids, mask, types)
        return hidden

    names = names_of(model.config, head=False)
    return Real(transformers.AutoModel, folder, forward, params, names, inputs_of(30522, 4, 24))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    source, folder = locate("smollm2"), tmp_path_factory.mktemp("smollm2")
    model = load_decoder(source, param_dtype=jnp.bfloat16)
    export_model(nnx.state(model), model.config, folder, source=source)
    ours = load_decoder(folder)
    auto = transformers.AutoModelForCausalLM
    inputs = inputs_of(49152, 2, 16)[:1]
    return Real(auto, folder, *lj.from_nnx(ours), names_of(ours.config), inputs)


def assert_close(got, expected, base):
    """To 1e-5 of their size, which the adapter has changed."""
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected - base).max() > 0.01 * np.abs(base).max()


def assert_both_directions(model, method, targets, modules, folder):
    variant = variants.make(method, rank=8)
    adapted = lj.adapt(model.forward, variant, targets)
    trainable, frozen = adapted.init(jax.random.key(0), model.params, *model.inputs)
    trainable = moved(trainable, size=model.size)
    lj.save_peft(folder / "ours", trainable, frozen, model.names)
    expected, plain = model.outputs(adapted, trainable, frozen), model.plain()
    assert_close(model.loaded_by_peft(folder / "ours"), expected, plain)
    config = {"peft_type": "LORA", "r": 8, "target_modules": modules, "use_dora": method == "dora"}
    expected = model.written_by_peft(folder / "theirs", config)
    assert_close(model.ours_from(folder / "theirs")[0], expected, plain)
    return trainable, frozen


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_minilm_classifier(method, minilm_classifier, tmp_path):
    assert_both_directions(minilm_classifier, method, "all-linear", "all-linear", tmp_path)


def test_minilm_encoder(minilm_encoder, tmp_path):
    modules = r"encoder\..*(query|key|value|dense)"
    assert_both_directions(minilm_encoder, "lora", "all-linear", modules, tmp_path)


def test_smollm2(smollm2, tmp_path):
    """LoRA of all linears, and the same as servers read it."""
    run = assert_both_directions(smollm2, "lora", "all-linear", "all-linear", tmp_path)
    lj.save_plain_lora(tmp_path / "plain", *run, smollm2.names)
    got = smollm2.loaded_by_peft(tmp_path / "plain")
    np.testing.assert_array_equal(got, smollm2.loaded_by_peft(tmp_path / "ours"))
