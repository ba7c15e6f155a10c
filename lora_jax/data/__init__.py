"""Tasks, tokenising and batching, in NumPy: nothing here uses a device.

`load_task` reads a `Task` from any source. `encode` (or `encode_cached`) turns its texts into
ragged token ids once. A `BatchPlan` says which examples make up the batch of a step, and `collate`
builds that batch. For decoders, `load_text_task` reads a `TextTask` of prompts and completions, and
`encode_prompts` and `encode_options` turn them into ids.
"""

from lora_jax.data.batches import (
    BatchPlan,
    PlannedBatch,
    branched,
    bucket_boundaries,
    collate,
    eval_plan,
    in_order,
    plan_epoch,
)
from lora_jax.data.examples import ArrayExamples, Examples, Prompts
from lora_jax.data.sources import (
    ARRAY_SOURCES,
    SOURCES,
    TEXT_SOURCES,
    as_chat,
    load_task,
    load_text_task,
)
from lora_jax.data.sources.demo import rotten_tomatoes
from lora_jax.data.sources.images import load as load_array_task
from lora_jax.data.split import as_written, normalise, plain_split, stratified_split
from lora_jax.data.task import Task, TextTask
from lora_jax.data.tasks import SPECS
from lora_jax.data.tokenizing.chat_templates import ChatTemplate, load_chat_template
from lora_jax.data.tokenizing.encode_prompts import (
    encode_options,
    encode_options_cached,
    encode_prompts,
    encode_prompts_cached,
    option_outputs,
)
from lora_jax.data.tokenizing.tokenize import (
    Encoded,
    NoRoomError,
    Tokenised,
    Tokenizer,
    encode,
    encode_cached,
    load_tokenizer,
)
from lora_jax.files.published_paths import cache_folder

__all__ = [
    "ARRAY_SOURCES",
    "SOURCES",
    "SPECS",
    "TEXT_SOURCES",
    "ArrayExamples",
    "BatchPlan",
    "ChatTemplate",
    "Encoded",
    "Examples",
    "NoRoomError",
    "PlannedBatch",
    "Prompts",
    "Task",
    "TextTask",
    "Tokenised",
    "Tokenizer",
    "as_chat",
    "as_written",
    "branched",
    "bucket_boundaries",
    "cache_folder",
    "collate",
    "encode",
    "encode_cached",
    "encode_options",
    "encode_options_cached",
    "encode_prompts",
    "encode_prompts_cached",
    "eval_plan",
    "in_order",
    "load_array_task",
    "load_chat_template",
    "load_task",
    "load_text_task",
    "load_tokenizer",
    "normalise",
    "option_outputs",
    "plain_split",
    "plan_epoch",
    "rotten_tomatoes",
    "stratified_split",
]
