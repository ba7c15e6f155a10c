"""Load classification and regression tasks, which an encoder with a head learns."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

import lora_jax as lj
from configs.settings import ClassifierConfig, EncoderSettings
from experiments.setup import from_config, processes
from experiments.setup.task_and_model import (
    FEW_TOKENS,
    TaskAndModel,
    boundaries,
    check_vocabulary,
    text_limit,
)
from lora_jax import data
from lora_jax.data.tokenised_task import LabelledTexts
from lora_jax.models import families
from lora_jax.models.parts.classifier import EncoderClassifier
from lora_jax.models.parts.config_checks import EncoderConfig
from lora_jax.models.parts.family import ENCODER, shardings_of
from lora_jax.models.published import weight_files
from lora_jax.models.published.load import (
    check_weights,
    load_classifier,
    open_weights,
    read_encoder_config,
)
from lora_jax.models.published.location import locate, reading_digest, unchanged
from lora_jax.partition import flatten


def read_texts(config: ClassifierConfig, task: data.Task | None = None) -> LabelledTexts:
    """Read the examples of a config as tokens of its model (see `load.read_texts`)."""
    task = task or from_config.make_task(config.data)
    folder = locate(config.model.name)
    shape = read_encoder_config(folder)
    # Check the model first, as reading the texts may take a while.
    _check_weights(folder, shape, abstract(shape, config.model, task.num_outputs))
    tokenizer = data.load_tokenizer(folder)
    parts = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
    with text_limit(config.data, shape.max_tokens, folder) as limit:
        tokenised = {n: data.encode_cached(tokenizer, each, limit) for n, each in parts.items()}
    encoded = {name: each.encoded for name, each in tokenised.items()}
    # DeBERTa without token types accepts and ignores any token type.
    check_vocabulary(encoded, shape.vocab_size, folder, shape.type_vocab_size or None)
    return LabelledTexts(
        task=task,
        tokenizer=tokenizer,
        encoded=encoded,
        examples_per_second=tokenised["train"].examples_per_second,
        boundaries=boundaries(encoded, config.data, limit),
        shape=shape,
    )


def load(config: ClassifierConfig, texts: LabelledTexts, mesh: Mesh | None) -> TaskAndModel:
    """Load a config's task and model (see `load.load`)."""
    folder = locate(config.model.name)
    task: Any = texts.task
    pool: Any = config.model.pool
    shardings = None
    if mesh is not None:
        like = abstract(texts.shape, config.model, task.num_outputs)
        shardings = shardings_of(like, ENCODER, mesh)
    with unchanged(folder):
        loaded = load_classifier(
            folder,
            num_labels=task.num_outputs,
            pool=pool,
            key=jax.random.key(0),
            dtype=config.model.dtype,
            param_dtype=config.model.dtype,
            head_dropout=config.model.head_dropout,
            unroll=config.model.unroll,
            shardings=shardings,
        )
        digest = processes.first(lambda: weight_files.weights_digest(folder))
        reading = processes.first(lambda: reading_digest(folder))

    def model(key: Array) -> Any:
        return lj.from_nnx(loaded.redrawn(jax.random.fold_in(key, 0)))

    return TaskAndModel(texts, model, ENCODER, digest, reading, fresh=loaded.fresh)


def load_abstract(config: ClassifierConfig) -> TaskAndModel:
    """As `load`, with shapes in place of weights."""
    texts = read_texts(config)
    task: Any = texts.task
    abstracted = lj.from_nnx(abstract(texts.shape, config.model, task.num_outputs))
    return TaskAndModel(texts, lambda key: abstracted, ENCODER)


def abstract(shape: EncoderConfig, model: EncoderSettings, outputs: int) -> EncoderClassifier:
    """The classifier of a config's `model`, with shapes in place of weights."""
    classifier: Any = families.family_of(shape).model
    given = shape, outputs, model.pool
    options = {"dtype": model.dtype, "param_dtype": model.dtype, "unroll": model.unroll}
    return nnx.eval_shape(lambda: classifier(*given, **options, rngs=nnx.Rngs(0)))


def abstract_model(config: ClassifierConfig, outputs: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward pass and its arguments (see `load.abstract_model`)."""
    folder = locate(config.model.name)
    shape = read_encoder_config(folder)
    classifier = abstract(shape, config.model, outputs)
    _check_weights(folder, shape, classifier)
    data.load_tokenizer(folder)
    forward, params = lj.from_nnx(classifier)
    return forward, (params, *FEW_TOKENS)


def _check_weights(folder: Path, config: EncoderConfig, classifier: nnx.Module) -> None:
    """Check that every tensor of the encoder exists with its shape; the head may be initialised."""
    paths, _ = flatten(nnx.state(classifier))
    head = [path for path in paths if path.startswith(("pooler/", "classifier/"))]
    check_weights(open_weights(folder, config), classifier, config, fresh=head)
