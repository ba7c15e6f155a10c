"""What trials are traced with before a sweep, against what a run computes with."""

import itertools

import jax
import numpy as np

from experiments.setup.experiment import build
from experiments.sweeps.grouping import AbstractRun
from lora_jax.training.fingerprint import fingerprint


def assert_are_those_of_the_run(config):
    """The forward passes, parameters' shapes, and batches, which are of more than one length."""
    run, traced = build(config), AbstractRun.of(config)
    trained = set(map(shapes, itertools.islice(run.batches(0), 3 * run.plan().steps_per_epoch)))
    assert set(map(shapes, traced.trained)) == trained
    scored = set()

    def call(batch):
        scored.add(batch["input_ids"].shape)
        outputs = jax.eval_shape(run.adapted_call(run.trainable), batch)
        return np.zeros(outputs.shape, outputs.dtype)

    run.predictions(call, *run.scored, *run.texts.task.unlabelled)
    lengths = [
        {batch["input_ids"].shape for batch in part} for part in (traced.trained, traced.scored)
    ]
    assert lengths[1] == scored and len(set.union(*lengths)) > 1

    params, ids = run.adapted.disable(run.trainable, run.frozen), traced.scored[0]["input_ids"]
    forward, like = traced.loaded.model(jax.random.key(0))
    assert shapes(params) == shapes(like)
    for mine, theirs in (
        (run.adapted.forward, forward),
        (run.eval_forward, traced.loaded.eval_forward),
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            given = params, ids, ids, ids
            assert fingerprint(mine, *given) == fingerprint(theirs, *given)


def shapes(tree):
    """Of each leaf its place, shape and dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple((jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in leaves)
