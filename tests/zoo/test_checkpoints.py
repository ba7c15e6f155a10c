"""Published files that a stranger's package reads too: one adapter gives the same numbers on both.

Both packages read the weights as float64, and every step that a model computes in float32 is
widened.
"""

import dataclasses
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
import variants
from lora_jax.compiled.by_numpy import ByNumpy
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import decoder_from, load_classifier, open_weights
from lora_jax.models.published.location import locate
from zoo import check

eqx_zoo = pytest.importorskip("eqx_zoo", reason="it has an environment of its own: make zoo")

pytestmark = [pytest.mark.zoo, pytest.mark.usefixtures("x64", "standard_promotion")]

IDS = np.array([[101, 7592, 2088, 999, 102], [101, 2204, 102, 0, 0]], np.int32)
MASK = (IDS != 0).astype(np.int32)


@pytest.fixture(autouse=True)
def ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_minilm():
    folder = locate("minilm")
    key = jax.random.key(0)
    ours, _ = load_classifier(folder, num_labels=3, pool="mean", key=key, param_dtype="float64")
    theirs = eqx_zoo.Encoder.from_pretrained(folder, dtype="float64")
    kernel, bias = ours.classifier.kernel[...], ours.classifier.bias[...]

    def classify(encoder, ids, mask):
        hidden = jax.vmap(encoder)(ids, mask)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean @ kernel + bias

    assert_same(ours, classify, theirs, IDS, MASK)


def test_smollm2():
    """Our reader dequantises the GGUF file, and theirs reads the folder that we write from it.

    The folder holds these weights without rounding, as float32. Theirs adds the epsilon of norms in
    float32: both get that number, where our config has the decimal that it was rounded from.
    """
    source = open_weights(locate("smollm2"))
    epsilon = float(np.float32(source.config.rms_norm_eps))
    config = dataclasses.replace(source.config, rms_norm_eps=epsilon)
    ours = decoder_from(source, config, param_dtype="float64")
    with TemporaryDirectory() as folder:  # half a gigabyte, which pytest would keep
        rounding = export_model(nnx.state(ours), config, folder, dtype="float32")
        theirs = eqx_zoo.CausalLM.from_pretrained(folder, dtype="float64")
    assert not any(rounding.values())

    def logits(decoder, ids):
        return jax.vmap(lambda row: decoder(row)[0])(ids)

    assert_same(ours, logits, theirs, IDS[:1])


def assert_same(ours, forward, theirs, *inputs):
    """One adapter gives the same outputs on both models, and the same gradients of its factors.

    Args:
      ours: a model of this library, whose layers' matrices are adapted.
      forward: the function that gives the same outputs from `theirs` and the inputs.
    """
    adapted, start, frozen = adapt(*lj.from_nnx(ours), "layers/.*kernel", inputs)
    # As small as trained ones: larger updates saturate the softmax, and gradients vanish.
    theta = jax.tree.map(lambda x: 0.1 * x, check.random_like(start, seed=1))
    outputs, gradients = evaluated(adapted, theta, frozen, inputs)

    adapted, start, frozen = adapt(forward, theirs, "all-linear", inputs)
    renamed = theta | {"adapters": by_tensor(theta["adapters"], ours.config)}
    assert jax.tree.structure(renamed) == jax.tree.structure(start)
    expected = outputs, gradients | {"adapters": by_tensor(gradients["adapters"], ours.config)}
    check.assert_close(evaluated(adapted, renamed, frozen, inputs), expected)


def adapt(forward, params, targets, inputs):
    adapted = lj.adapt(forward, variants.make("lora", rank=2), targets)
    return adapted, *adapted.init(jax.random.key(0), params, *inputs)


def evaluated(adapted, theta, frozen, inputs):
    """The outputs and gradients of an adapted model, by NumPy, with every float a float64."""

    def run(theta, frozen):
        return check.derivative(lambda at: adapted.apply(at, frozen, *inputs), theta)

    closed, form = jax.make_jaxpr(run, return_shape=True)(theta, frozen)
    results = ByNumpy(wide=True)(closed.jaxpr, closed.consts, jax.tree.leaves((theta, frozen)))
    return jax.tree.unflatten(jax.tree.structure(form), results)


def by_tensor(adapters, config):
    """Factors of our stacked layers, by the path of each layer's tensor in the published file."""
    prefix = families.family_of(config).prefix if config.kind == "encoder" else ""
    return {
        place.name.removeprefix(prefix).replace(".", "/"): {
            name: factor[layer] for name, factor in factors.items()
        }
        for path, factors in adapters.items()
        for layer, place in enumerate(families.places(path, config))
    }
