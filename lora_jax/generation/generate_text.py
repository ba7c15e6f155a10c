"""Generate texts after text prompts, in batches of a few shapes.

For example:

    texts = generate_texts(
        beam_search, step, (params,), tokenizer, prompts, eos_ids=50256, max_new_tokens=64
    )
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.data.batches import bucket_boundaries, collate, eval_plan
from lora_jax.data.examples import Examples
from lora_jax.data.tokenizing.tokenize import Encoded, Tokenizer, encode
from lora_jax.files.arrays import to_host
from lora_jax.generation.beam_search import Beams
from lora_jax.generation.generate import CachedApply, eos_tuple

_NO_LIMIT = 2**31 - 1


def generate_texts(
    search: Callable[..., Any],
    apply: CachedApply,
    weights: Sequence[Any],
    tokenizer: Tokenizer,
    prompts: Sequence[str] | Encoded,
    *,
    eos_ids: int | Sequence[int] | None,
    batch_size: int = 8,
    max_buckets: int = 4,
    limit: int | None = None,
    key: Array | None = None,
    **settings: Any,
) -> list[str]:
    """Generate a text after each prompt, in their order.

    The texts have no special tokens, no end token and no outer whitespace. Prompts of similar
    length share a batch of exactly `batch_size` rows, padded to one of at most `max_buckets`
    lengths, so that at most this many programs are compiled.

    Args:
        search: `generate`, or `beam_search`, whose best text is taken.
        apply: the model, step by step, as for `search`, and so are `weights` and `eos_ids`.
        tokenizer: the model's tokenizer; it adds its special tokens to text prompts, and never
            truncates them.
        prompts: texts, or the result of `lora_jax.data.tokenizing.encode_prompts` for prompts
            alone, which truncates them.
        limit: the most tokens that a prompt may have or be padded to: the model's positions less
            `max_new_tokens`.
        key: for sampling: text i uses `fold_in(key, i)`, however prompts are batched.
        **settings: `max_new_tokens` and any other arguments of `search`.

    Raises:
        ValueError: for a prompt without tokens, or one of more than `limit` tokens.
    """
    encoded = prompts
    if not isinstance(encoded, Encoded):
        encoded = encode(tokenizer, Examples("prompts", encoded, None), _NO_LIMIT)
    lengths = encoded.lengths
    if (empty := np.flatnonzero(lengths == 0)).size:
        text = "" if isinstance(prompts, Encoded) else f" {prompts[empty[0]]!r}"
        raise ValueError(
            f"prompt {empty[0]}{text} has no token; "
            "begin it with one, such as the one that begins a text"
        )
    ends = np.asarray(eos_tuple(eos_ids), np.int64)
    rows: list[list[int]] = [[] for _ in lengths]
    boundaries = bucket_boundaries(lengths, max_buckets, limit=limit)
    for batch in eval_plan(lengths, batch_size, boundaries):
        arrays = collate(encoded, batch.indices, batch.padded_length, batch_size)
        own = settings
        if key is not None:
            numbers = jnp.asarray(np.resize(batch.indices, batch_size).astype(np.int32))
            own = {**settings, "key": jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)}
        ids, mask = jnp.asarray(arrays["input_ids"]), jnp.asarray(arrays["attention_mask"])
        out = search(apply, weights, ids, mask, eos_ids=eos_ids, pad_id=tokenizer.pad_id, **own)
        tokens, counts = to_host(out.tokens), to_host(out.lengths)
        if isinstance(out, Beams):
            tokens, counts = tokens[:, 0], counts[:, 0]
        for index, row, count in zip(batch.indices, tokens, counts, strict=False):
            text = row[:count]
            rows[index] = text[~np.isin(text, ends)].tolist()
    texts = tokenizer.backend.decode_batch(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]
