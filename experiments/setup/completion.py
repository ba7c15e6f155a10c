"""Load text-to-text tasks: a decoder learns completions, and is scored by their likelihood."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from configs.settings import DecoderSettings, GenerateSettings, TextConfig
from experiments.setup import from_config, processes
from experiments.setup.task_and_model import (
    FEW_TOKENS,
    TaskAndModel,
    boundaries,
    check_vocabulary,
    text_limit,
)
from experiments.setup.validate import LAYERS, check_written
from lora_jax import data
from lora_jax.data.tokenised_task import Completions
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.parts.decoder import Decoder
from lora_jax.models.parts.family import DECODER, shardings_of
from lora_jax.models.parts.kv_cache import cached_step, empty_cache
from lora_jax.models.published import weight_files
from lora_jax.models.published.load import load_decoder, read_abstract_decoder, read_decoder_config
from lora_jax.models.published.location import locate, reading_digest, unchanged
from lora_jax.sharding import memory


def read_texts(config: TextConfig, task: data.TextTask | None = None) -> Completions:
    """Read the examples of a config as tokens of its model (see `load.read_texts`)."""
    task = task or from_config.make_text_task(config.data)
    check_written(config.generate, task)
    where = locate(config.model.name)
    # Check this first: a model that is not a decoder has no chat template either.
    shape = read_decoder_config(where)
    tokenizer = data.load_tokenizer(where)
    task = in_template(config, task, tokenizer)
    most, new = shape.max_tokens, config.generate.max_new_tokens
    if most - new < 2:
        raise ValueError(
            f"config.generate.max_new_tokens {new} leaves no room for a prompt; the model in "
            f"{where} takes {most} tokens"
        )
    scored = {"validation": task.validation, **task.extra, **task.unlabelled}
    with text_limit(config.data, most, where) as limit:
        train = _completions(tokenizer, task.train, limit)
        parts = {name: _part(tokenizer, each, limit) for name, each in scored.items()}
    encoded = {**{name: each for name, (each, _) in parts.items()}, "train": train.encoded}
    check_vocabulary(encoded, shape.vocab_size, where)
    # A row with all options of a question may be longer than its prompt with any single option.
    longest = max(int(each.lengths.max()) for each in encoded.values())
    room = limit if longest <= limit else shape.max_tokens
    answers = {name: each.answers for name, each in scored.items() if each.answers is not None}
    return Completions(
        task=task,
        tokenizer=tokenizer,
        encoded=encoded,
        examples_per_second=train.examples_per_second,
        boundaries=boundaries(encoded, config.data, room),
        shape=shape,
        answers=answers,
        offsets={name: each for name, (_, each) in parts.items() if each is not None},
        completion=int(train.encoded.labels.max()),
        prompt_limit=min(limit, most - new),
    )


def in_template(
    config: TextConfig, task: data.TextTask, tokenizer: data.Tokenizer
) -> data.TextTask:
    """The task with its prompts as the config has them: in the model's chat template, or plain."""
    if config.data.template != "chat":
        return task
    first = begin(tokenizer)
    start = None if first is None else tokenizer.backend.id_to_token(first)
    return data.as_chat(task, data.load_chat_template(locate(config.model.name)), start or "")


def load(config: TextConfig, texts: Completions, mesh: Mesh | None) -> TaskAndModel:
    """Load a config's task and model (see `load.load`)."""
    where = locate(config.model.name)
    given, shardings = options(config.model), None
    if mesh is not None:
        abstract = read_abstract_decoder(where, **given)
        shardings = shardings_of(abstract, DECODER, mesh)
    with unchanged(where):
        decoder = load_decoder(where, **given, mesh=mesh, shardings=shardings)
        _check_cache(decoder, config.generate)
        digest = processes.first(lambda: weight_files.weights_digest(where))
        reading = processes.first(lambda: reading_digest(where))
    return _loaded(config, texts, decoder, digest, reading)


def load_abstract(config: TextConfig) -> TaskAndModel:
    """As `load`, with shapes in place of weights."""
    texts, where = read_texts(config), locate(config.model.name)
    return _loaded(config, texts, read_abstract_decoder(where, **options(config.model)))


def _loaded(
    config: TextConfig, texts: Completions, decoder: Decoder, digest: str = "", reading: str = ""
) -> TaskAndModel:
    longest = max(int(each.labels.max()) for each in texts.encoded.values())
    smoothing, chunk = config.train.label_smoothing, config.model.chunk
    forward, params = completion_likelihood(decoder, texts.completion, chunk, smoothing)
    eval_forward, _ = completion_likelihood(decoder, longest, chunk, options=texts.options)
    step, _ = cached_step(decoder)
    return TaskAndModel(
        texts, lambda key: (forward, params), DECODER, digest, reading, eval_forward, step
    )


def _check_cache(decoder: Decoder, generate: GenerateSettings) -> None:
    """Raise a ValueError if the key-value cache of the generated tokens does not fit in memory.

    The model generates only after training, so this is checked early. The cache of the prompts,
    which also takes memory, is not counted.
    """
    if not generate.writes:
        return
    rows, tokens = generate.batch_size * generate.beams, generate.max_new_tokens
    kept = memory.tree_bytes(jax.eval_shape(lambda: empty_cache(decoder, rows, tokens)))
    room = memory.available()
    if room is not None and kept > room:
        raise ValueError(
            f"config.generate: {tokens} tokens (max_new_tokens) of {rows} texts (batch_size times "
            f"beams) take {memory.size(kept)}, and {memory.size(room)} of memory are available: "
            "lower one of them"
        )


def abstract_model(config: TextConfig, outputs: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward pass and its arguments (see `load.abstract_model`)."""
    where = locate(config.model.name)
    data.load_tokenizer(where)
    decoder = read_abstract_decoder(where, **options(config.model))
    forward, params = completion_likelihood(decoder, 1, config.model.chunk)
    return forward, (params, *FEW_TOKENS)


def options(model: DecoderSettings) -> dict[str, Any]:
    """The arguments for making the decoder of a config's `model`."""
    return {
        "dtype": model.compute_dtype,
        "param_dtype": model.dtype,
        "remat": True if model.remat == LAYERS else model.remat or False,
        "unroll": model.unroll,
    }


def _part(
    tokenizer: data.Tokenizer, prompts: data.Prompts, limit: int
) -> tuple[data.Encoded, np.ndarray | None]:
    """The tokens of a scored part, and the places of its questions' options if it has any."""
    if prompts.options is None:
        return _completions(tokenizer, prompts, limit).encoded, None
    made, offsets = data.encode_options_cached(tokenizer, prompts, limit, begin(tokenizer))
    return data.branched(made.encoded, offsets), offsets


def _completions(tokenizer: data.Tokenizer, prompts: data.Prompts, limit: int) -> data.Tokenised:
    if tokenizer.eos_id is None:
        raise ValueError("the tokenizer has no token that ends a text")
    ends = tokenizer.eos_id, begin(tokenizer)
    return data.encode_prompts_cached(tokenizer, prompts, limit, *ends)


def begin(tokenizer: data.Tokenizer) -> int | None:
    """The id of the token that begins every text; None if there is none."""
    return tokenizer.bos_id if tokenizer.starts_with_bos else None
