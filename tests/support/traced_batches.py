"""What trials are traced with before a sweep, against what a run computes with."""

import itertools

import jax
import numpy as np

from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.sweeps.traced_step import AbstractRun
from lora_jax.training.fingerprint import fingerprint


def assert_are_those_of_the_run(config):
    """The forward passes, parameters' shapes, and batches, which are of more than one length."""
    run, outline = build(parse(config)), AbstractRun.of(parse(config))
    trained = set(map(shapes, itertools.islice(run.batches(0), 3 * run.plan().steps_per_epoch)))
    assert set(map(shapes, outline.trained)) == trained
    scored = set()

    def call(batch):
        scored.add(batch["input_ids"].shape)
        outputs = jax.eval_shape(run.adapted_call(run.trainable), batch)
        return np.zeros(outputs.shape, outputs.dtype)

    run.predictions(call, *run.task.extra, *run.task.unlabelled)
    lengths = [
        {batch["input_ids"].shape for batch in part} for part in (outline.trained, outline.scored)
    ]
    assert lengths[1] == scored and len(set.union(*lengths)) > 1

    params, ids = run.adapted.disable(run.trainable, run.frozen), outline.scored[0]["input_ids"]
    assert shapes(params) == shapes(outline.params)
    for mine, traced in (
        (run.adapted.forward, outline.forward),
        (run.workload.evaluated, outline.evaluated),
    ):
        assert (mine is None) == (traced is None)
        if mine is not None:
            given = params, ids, ids, ids
            assert fingerprint(mine, *given) == fingerprint(traced, *given)


def shapes(tree):
    """Of each leaf its place, shape and dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple((jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in leaves)
