"""A small run of `train.fit` on a mesh, for the processes that tests start; prints what it found.

With --processes and a --port, several of these are one run; XLA_FLAGS says how many devices each
has. A line "ready" comes before training and, last, JSON: the losses by step, the checksum of every
leaf, the warnings; of checkpoints that are only read, a list of that.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import lora_jax as lj
import variants
from lora_jax.compiled import audit
from lora_jax.files.arrays import checksum, hexadecimal
from lora_jax.records.metrics_log import Metrics
from lora_jax.training import loop, trial_program
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.loop_settings import Loop
from lora_jax.training.outcome import Outcome
from lora_jax.training.preemption import preemption
from lora_jax.training.saved_trials import SavedTrials, without_optimizer
from lora_jax.training.state_leaves import bare
from lora_jax.training.step import TrainState, cross_entropy, make_step

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--mesh", type=int, nargs=3, default=(1, 1, 1))
parser.add_argument("--turned", action="store_true", help="Rows where columns are divided else.")
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--process", type=int, default=0)
parser.add_argument("--port", type=int)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--dies_saving", type=int, default=0, help="The step in whose save this ends.")
parser.add_argument("--read", type=Path, nargs="+", help="Checkpoints to restore only.")
parser.add_argument("--spoils", type=int, help="The process whose gradient is spoilt.")
parser.add_argument("--misreads", type=Path, help="Where this cannot read step 40.")
given = parser.parse_args()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
if given.processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{given.port}", given.processes, given.process)
mesh = jax.make_mesh(
    tuple(given.mesh), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
)


def forward(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"] + params["bias"][None]


def sharding(leaf):
    axes = ("tensor", "fsdp") if given.turned else ("fsdp", "tensor")
    even = [
        axis if size % mesh.shape[axis] == 0 else None
        for size, axis in zip(leaf.shape, axes, strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*(even if leaf.ndim == 2 else ())))


def divided(leaf, where):
    """A global array of what every process has whole."""
    array = np.asarray(bare(leaf))
    made = jax.make_array_from_callback(array.shape, where, lambda index: array[index])
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return made
    return jax.jit(jax.random.wrap_key_data, out_shardings=where)(made)


def place(tree):
    return jax.tree.map(lambda leaf: divided(leaf, sharding(leaf)), tree)


rng = np.random.default_rng(0)
params = {"up": rng.normal(size=(8, 16)), "down": rng.normal(size=(16, 4)), "bias": np.zeros(4)}
adapted = lj.adapt(forward, variants.make("lora", rank=2, dropout=0.1), also_train=["up", "bias"])
tx = optax.adam(1e-2)
trainable, frozen = adapted.init(jax.random.key(2), params, np.zeros((1, 8)))
state = TrainState.create(adapted, tx, trainable, frozen, jax.random.key(1))
state, frozen = place(state), place(frozen)


def batches(start):
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    for step in range(start, given.steps):
        x = np.random.default_rng(step).normal(size=(8, 8))
        batch = {"x": x, "label": (x.sum(1) > 0).astype(np.int32)}
        yield {"weight": np.ones(8)} | {
            name: jax.make_array_from_callback(
                value.shape, rows, lambda index, value=value: value[index]
            )
            for name, value in batch.items()
        }


def predict(trainable, frozen, batch, rng):
    return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)


made = make_step(adapted, predict, cross_entropy)
step = jax.jit(
    lambda state, frozen, batch: made(tx, None, state, frozen, batch),
    donate_argnums=0,
    out_shardings=(
        jax.tree.map(lambda leaf: leaf.sharding, state),
        NamedSharding(mesh, PartitionSpec()),
    ),
)
size = jax.jit(lambda trainable: sum(jnp.square(x).sum() for x in jax.tree.leaves(trainable)))
losses = {}


class Spoilt:
    """The step, with another gradient of the bias in the memory of this process's devices."""

    trace = step.trace

    def __call__(self, *arguments):
        state, metrics = step(*arguments)
        opt_state = jax.tree.map(lambda x: spoilt(x) if x.shape == (4,) else x, state.opt_state)
        return dataclasses.replace(state, opt_state=opt_state), metrics


def spoilt(x):
    parts = [1 + each.data for each in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def audited(state):
    """The audit of the step, or of the spoilt one."""

    def case():
        near = audit.perturbed(state.trainable)
        own = jax.tree.map(jnp.copy, dataclasses.replace(state, trainable=near))
        return own, frozen, next(batches(0))

    return audit.audit(Spoilt() if given.spoils == given.process else step, [("8 rows", case)])


if given.dies_saving:

    def dies(self, directory, *args, **kwargs):
        """SIGKILL as soon as the folder is there that the other process makes of the step."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if list(given.folder.glob(f"checkpoints/{given.dies_saving}.*tmp*")):
                os.kill(os.getpid(), signal.SIGKILL)
        raise TimeoutError("nobody saves")

    true_write = Checkpoints._write

    def write(self, number, *args):
        if number == given.dies_saving:
            ocp.StandardCheckpointHandler.async_save = dies
        true_write(self, number, *args)

    Checkpoints._write = write

if given.misreads:
    true_load = Checkpoints._load

    def load(self, handler, number, item, args):
        if self.folder == given.misreads and number == 40 and item == "state":
            raise OSError("the network is down")
        return true_load(self, handler, number, item, args)

    Checkpoints._load = load


def said(state, outcome, warned):
    paths = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    sums = [hexadecimal(checksum(bare(leaf))) for _, leaf in paths]
    trainable = jax.tree.leaves(state.trainable)
    return {
        "steps": outcome.steps,
        "losses": losses,
        "leaves": dict(zip(names, sums, strict=True)),
        "audit": outcome.audit,
        "warnings": [str(each.message) for each in warned],
        "spread": sum(not leaf.is_fully_addressable for leaf in trainable),
    }


@contextlib.contextmanager
def warnings_of_users():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        yield warned


if given.read:
    found = []
    for folder in given.read:
        with warnings_of_users() as warned, Checkpoints(folder) as saved:
            like = {"now": [state], "best": [without_optimizer(state)]}
            restored, meta, number = saved.restore(like)
        found.append(said(restored["now"][0], Outcome(steps=number), warned))
    print(json.dumps(found), flush=True)
    raise SystemExit

if given.spoils is not None:
    try:
        audited(state)
    except ValueError as error:
        print(json.dumps(str(error)), flush=True)
    raise SystemExit

print("ready", flush=True)
with (
    warnings_of_users() as warned,
    preemption() as interrupted,
    Checkpoints(given.folder / "checkpoints") as saved,
    Metrics(given.folder, enabled=given.process == 0) as log,
):
    outcome, settings = Outcome(), Loop(given.steps, 1, 20, 10, metric="score", mode="max")
    (state,) = loop.fit(
        trial_program.alone(step, frozen),
        [state],
        [loop.TrialRun(settings, batches, log, outcome)],
        evaluate=lambda _, trainable: {"score": float(size(trainable))},
        saved=SavedTrials(saved, {}, keep_best=True),
        progress=lambda number, loss, _: losses.update({number: loss}),
        interrupted=interrupted,
        audit=lambda states: audited(*states),
    )
print(json.dumps(said(state, outcome, warned)), flush=True)
raise SystemExit(75 if outcome.interrupted else 0)
