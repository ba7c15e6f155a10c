"""Tasks, tokenising and batching: NumPy only, no device is touched here.

A `Task` holds labelled texts, `encode` turns them into ragged token ids once, a `BatchPlan` says
which of them make up the batch of a given step, and `collate` builds that batch.
"""

from lora_jax.data.batching import (
    Batch,
    BatchPlan,
    bucket_boundaries,
    collate,
    eval_plan,
    in_order,
    plan_epoch,
)
from lora_jax.data.demo import rotten_tomatoes
from lora_jax.data.examples import Examples, Task
from lora_jax.data.split import normalise, stratified_split
from lora_jax.data.tokenize import Encoded, Tokenizer, encode, load_tokenizer

__all__ = [
    "Batch",
    "BatchPlan",
    "Encoded",
    "Examples",
    "Task",
    "Tokenizer",
    "bucket_boundaries",
    "collate",
    "encode",
    "eval_plan",
    "in_order",
    "load_tokenizer",
    "normalise",
    "plan_epoch",
    "rotten_tomatoes",
    "stratified_split",
]
