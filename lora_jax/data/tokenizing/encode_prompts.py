"""Token ids from prompts and completions, such that no token crosses their boundary.

The boundary affects what is learned. It is found as follows:

* First, spaces at the end of a prompt move to the completion, as in lm-evaluation-harness
  (`_encode_pair`): vocabularies join a space to the word after it, and a separate token for one
  space before a word is rare in texts. Line ends stay with the prompt (the harness moves them too):
  Llama 3 and Qwen 2 have one token for `:` and a line end.
* Then the whole text is tokenised. If its ids begin with exactly the ids of the prompt alone, they
  are split there. The text is then tokenised as the tokenizer would do it; and at generation, which
  starts from the prompt's ids alone, the model continues from the ids that it was trained on.
* Otherwise a token crosses the boundary, and prompt and completion are tokenised separately. The
  harness and LLM-Adapters (`finetune.py`) split the whole text at the number of the prompt's tokens
  in this case too, so that a piece of the completion counts as prompt, or the reverse. A
  SentencePiece tokenizer marks a word beginning at the boundary in this case.

Special tokens are added only by id, so that a tokenizer's own template neither ends a prompt nor
begins a completion.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_jax.data.examples import Prompts
from lora_jax.data.tokenizing.tokenize import (
    Encoded,
    NoRoomError,
    Tokenised,
    Tokenizer,
    cached,
    key_of,
)


def encode_prompts(
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_length: int,
    eos_id: int,
    bos_id: int | None = None,
) -> Encoded:
    """Token ids of prompt, completion and end of text, for training and for the loss per token.

    `type_ids` are 1 on the completion and the end of text after it, and 0 before. From an example
    longer than `max_length`, tokens are removed at the start of the prompt (after `bos_id`);
    `truncated` counts these examples. `labels` are the number of learned tokens, int64. If
    `prompts` has no completions, the result is the prompts alone, all of type 0, for generation.

    Args:
      max_length: the most tokens of an example, all included.
      eos_id: the token that ends a completion.
      bos_id: the token that begins every text, or None for a model without one.

    Raises:
      NoRoomError: `max_length` has no room for an example's completion and one token before it; the
        message counts these examples.
      ValueError: an empty prompt and no `bos_id`. Both messages are one line and name the example
        by its id, or by its place if the examples have no ids.
    """
    counts = np.ones(len(prompts), np.int64)
    learned = prompts.completions or [""] * len(prompts)
    ids, follow = _boundaries(tokenizer, prompts.prompts, learned, counts)
    follow = [[*each, eos_id] if prompts.completions else [] for each in follow]
    return _rows(tokenizer, prompts, ids, follow, counts, max_length, bos_id)


def encode_options(
    tokenizer: Tokenizer, prompts: Prompts, max_length: int, bos_id: int | None = None
) -> tuple[Encoded, np.ndarray]:
    """Token ids of every prompt with each of its options, and `offsets` of each question's rows.

    Question q has rows `offsets[q]` to `offsets[q + 1]`, in the order of its options. No end of
    text follows an option. Otherwise as `encode_prompts`; `truncated` counts rows, and `labels` are
    the number of tokens of each option, int64.

    Raises:
      ValueError: no options, or as in `encode_prompts`.
    """
    options, offsets = _options(prompts)
    counts = np.diff(offsets)
    ids, follow = _boundaries(tokenizer, prompts.prompts, options, counts)
    return _rows(tokenizer, prompts, ids, follow, counts, max_length, bos_id), offsets


def encode_prompts_cached(
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_length: int,
    eos_id: int,
    bos_id: int | None = None,
    folder: str | Path | None = "",
) -> Tokenised:
    """`encode_prompts`, or its cached result; `folder` as in `encode_cached`."""
    key = key_of(tokenizer, max_length, "completions", prompts.text_digest(), eos_id, bos_id)
    make = functools.partial(encode_prompts, tokenizer, prompts, max_length, eos_id, bos_id)
    return cached(key, make, tokenizer.pad_id, folder)


def encode_options_cached(
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_length: int,
    bos_id: int | None = None,
    folder: str | Path | None = "",
) -> tuple[Tokenised, np.ndarray]:
    """`encode_options`, or its cached result; `folder` as in `encode_cached`."""
    key = key_of(tokenizer, max_length, "options", prompts.text_digest(), bos_id)

    def make() -> Encoded:
        return encode_options(tokenizer, prompts, max_length, bos_id)[0]

    return cached(key, make, tokenizer.pad_id, folder), _options(prompts)[1]


def option_outputs(loglik: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The log-likelihoods of options by question, (questions, most options) float32.

    The largest number of a row is the model's answer. If a question has fewer options than others,
    its row is filled with -1e30, which has no weight in a softmax.

    Args:
      loglik: (rows,) for the rows of `encode_options`: the sum over the tokens of each option.
      offsets: (questions + 1,), from `encode_options`.

    Raises:
      ValueError: different numbers of rows.
    """
    loglik = np.asarray(loglik, np.float64)
    counts = np.diff(offsets)
    if loglik.shape != (int(offsets[-1]),):
        raise ValueError(f"log-likelihoods of shape {loglik.shape} for {offsets[-1]} options")
    outputs = np.full((len(counts), int(counts.max())), -1e30, np.float32)
    outputs[np.arange(outputs.shape[1]) < counts[:, None]] = loglik
    return outputs


def _options(prompts: Prompts) -> tuple[list[str], np.ndarray]:
    if prompts.options is None:
        raise ValueError(f"data set {prompts.name!r} has no options")
    options = [each for row in prompts.options for each in row]
    return options, np.cumsum([0, *prompts.option_counts], dtype=np.int64)


def _boundaries(
    tokenizer: Tokenizer, prompts: Sequence[str], follows: Sequence[str], counts: np.ndarray
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts and of the texts that follow them; `counts[i]` texts follow prompt i."""

    def ids(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    stripped = [prompt.rstrip(" ") for prompt in prompts]
    prompt_ids = ids(stripped)
    owners = np.repeat(np.arange(len(prompts)), counts).tolist()
    moved = [
        prompts[owner][len(stripped[owner]) :] + follow
        for owner, follow in zip(owners, follows, strict=True)
    ]
    whole = ids([stripped[owner] + text for owner, text in zip(owners, moved, strict=True)])
    follow_ids = []
    apart = []
    for row, (owner, each) in enumerate(zip(owners, whole, strict=True)):
        before = prompt_ids[owner]
        if each[: len(before)] != before:
            apart.append(row)
        follow_ids.append(each[len(before) :])
    for row, each in zip(apart, ids([moved[row] for row in apart]), strict=True):
        follow_ids[row] = each
    return prompt_ids, follow_ids


def _rows(
    tokenizer: Tokenizer,
    prompts: Prompts,
    prompt_ids: Sequence[Sequence[int]],
    follow_ids: Sequence[Sequence[int]],
    counts: np.ndarray,
    max_length: int,
    bos_id: int | None,
) -> Encoded:
    start = [] if bos_id is None else [bos_id]
    rows, types = [], []
    truncated = 0
    owners = np.repeat(np.arange(len(counts)), counts).tolist()
    _require_room(prompts, owners, follow_ids, max_length)
    for owner, follow in zip(owners, follow_ids, strict=True):
        before = prompt_ids[owner]
        room = max_length - len(start) - len(follow)
        if not start and not before:
            raise ValueError(
                f"{_named(prompts, owner)}: an empty prompt needs a model with a token that begins "
                "every text"
            )
        truncated += len(before) > room
        context = [*start, *before[max(len(before) - room, 0) :]]
        rows.append(np.array([*context, *follow], np.int32))
        types.append(np.repeat(np.array([0, 1], np.int32), [len(context), len(follow)]))
    return Encoded(
        ids=np.concatenate(rows),
        type_ids=np.concatenate(types),
        offsets=np.cumsum([0] + [len(row) for row in rows], dtype=np.int64),
        labels=np.array([int(each.sum()) for each in types], np.int64),
        pad_id=tokenizer.pad_id,
        truncated=truncated,
    )


def _require_room(
    prompts: Prompts, owners: Sequence[int], follow_ids: Sequence[Sequence[int]], max_length: int
) -> None:
    """Raise a NoRoomError for completions that `max_length` has no room for with a token before."""
    lengths = [len(each) for each in follow_ids]
    too_long = [row for row, length in enumerate(lengths) if length >= max_length]
    if too_long:
        first, count = too_long[0], len({owners[row] for row in too_long})
        raise NoRoomError(
            f"{_named(prompts, owners[first])}: max_length {max_length} leaves no room for its "
            f"completion of {lengths[first]} tokens and a token before it ({count} of "
            f"{len(prompts)} examples {'is' if count == 1 else 'are'} too long)"
        )


def _named(prompts: Prompts, place: int) -> str:
    """An example as messages name it: by its id, which says where it is in its source."""
    name = str(place) if prompts.ids is None else prompts.ids[place]
    counted = " (counted from 0)" if name.isdecimal() else ""
    return f"data set {prompts.name!r}, example {name}{counted}"
