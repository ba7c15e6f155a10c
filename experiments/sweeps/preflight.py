"""Check all trials before any of them starts, without weights, and estimate the time they take.

The estimate is from a few real steps of one trial of each program.
"""

import dataclasses
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from configs.settings import RunConfig, TextConfig
from experiments.command_names import command_line
from experiments.runs import rungs
from experiments.setup import from_config
from experiments.setup.experiment import Experiment, build
from experiments.setup.load import abstract_model, load, read_texts
from experiments.setup.validate import check_written
from experiments.sweeps.grouping import program_key
from experiments.sweeps.jobs import Job
from experiments.sweeps.trials import Trial, refuse
from lora_jax import data
from lora_jax.files import tree_file
from lora_jax.training.loop_settings import Loop
from lora_jax.transform.adapt import init_shapes


def check_trials(trials: Sequence[Trial]) -> list[Loop]:
    """Check trials, and return the training loop of each.

    Trials with the same data or shapes share the reading and tracing.

    Raises:
      ValueError: some trials cannot work; the message has a line for each kind of mistake, with the
        trials that have it.
    """
    once = Once()
    loops, wrong = [], []
    for trial in trials:
        try:
            loops.append(check(trial.config, once))
        except (ValueError, OSError, ImportError) as error:
            wrong.append((trial.name, str(error)))
    refuse(wrong, len(trials))
    return loops


class Once:
    """A cache of the results and errors of function calls, by what the functions read."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Any] = {}

    def __call__(self, read: Any, function: Callable[..., Any], *values: Any) -> Any:
        key = function.__name__, repr(read)
        if key not in self._found:
            try:
                self._found[key] = function(*values)
            except (ValueError, OSError, ImportError) as error:
                self._found[key] = error
        if isinstance(found := self._found[key], Exception):
            raise found
        return found


def loop_of(config: RunConfig, once: Once) -> Loop:
    """The training loop of a run, of which nothing else is checked."""
    task = once(config.data, from_config.make_any_task, config)
    return from_config.make_loop(config.train, len(task.train), task.metric)


def check(config: RunConfig, once: Once) -> Loop:
    """Check a run, and return its training loop.

    Raises:
      ValueError, OSError, ImportError: it cannot work.
    """
    task, loop = once(config.data, from_config.make_any_task, config), loop_of(config, once)
    from_config.make_hyper(config, loop.steps)
    outputs = 0  # for a language model, whose only outputs are its vocabulary
    if isinstance(task, data.Task):
        outputs = task.num_outputs
    elif isinstance(config, TextConfig):
        check_written(config.generate, task)
    adapters = config.model, config.variant, config.targets, config.also_train, config.quantize
    once((*adapters, outputs, loop.steps), _trace, config, outputs, loop.steps)
    if config.start_from:
        path, _ = from_config.make_start(config.start_from)
        once(path, tree_file.load_tree, path)
    new_tokens = config.generate.max_new_tokens if isinstance(config, TextConfig) else 0
    # The texts of one draw stand for those of others.
    any_draw = dataclasses.replace(config.data, draw=0)
    once((any_draw, config.model.name, new_tokens), _read_texts, config, task)
    return loop


def _trace(config: RunConfig, outputs: int, steps: int) -> None:
    """Adapt a model from shapes alone; patterns without a match and wrong ranks raise."""
    forward, params = abstract_model(config, outputs)
    adapted = from_config.adapt(config, forward, from_config.make_run_targets(config, steps))
    example = np.zeros((2, 2), np.int32)
    init_shapes(adapted, jax.random.key(0), params, example, example, example)


def _read_texts(config: RunConfig, task: data.Task | data.TextTask) -> None:
    """Check that the texts fit the model; the runs find the token ids in the cache."""
    read_texts(config, task)


_REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds to compile a call for one batch length, and to make it with the longest batch.

    The cost of shorter batches is taken as proportional to their length, which is a little too low.
    """

    compile: float
    call: float
    longest: int

    def compiled(self, lengths: Mapping[int, int]) -> float:
        return self.compile * len(lengths)

    def called(self, lengths: Mapping[int, int]) -> float:
        """The seconds of the calls, given the number of calls of each length."""
        tokens = sum(length * count for length, count in lengths.items())
        return self.call * tokens / self.longest


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The seconds of a program and its trials."""

    program: float
    """Those that all trials share."""
    built: float
    """Those in which a trial is made."""
    trained: float
    """Those in which a trial trains to its last step and is evaluated."""
    steps: int

    def of(self, trials: int, halving: int = 0) -> float:
        """The seconds of `trials` trials, one after another in one program.

        Args:
          halving: at each rung, one of so many trials goes on; 0 trains all to the end.
        """
        whole = float(trials)
        if halving:
            whole = rungs.cost(rungs.plan(trials, self.steps, halving)) / self.steps
        return self.program + trials * self.built + whole * self.trained


def start_up() -> float:
    """The seconds until a new process is ready to begin a trial."""
    began = time.perf_counter()
    line = [*command_line("worker"), "--help"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds(
    jobs: Sequence[Job], halving: int = 0, tell: Callable[[str], None] = print
) -> list[float]:
    """The seconds of each job, with compilation, if nothing else uses the machine.

    Nothing is written, except the caches that all runs use.

    Args:
      halving: as in `Estimate.of`.
    """
    measured: dict[str, Estimate] = {}
    found = []
    for job in jobs:
        key = program_key(job[0].config)
        if key not in measured:
            tell(f"timing a few steps of {job[0].name}")
            measured[key] = measure(job[0].config)
        found.append(measured[key].of(len(job), halving))
    return found


def measure(config: RunConfig) -> Estimate:
    """Build a trial, time some of its steps, and estimate its whole time.

    What an initialisation gathers from data is left out: trials that agree share it. So are texts
    that a language model writes (`writes`): how long these get, only a trained one knows.
    """
    began = time.perf_counter()
    loaded, read = load(config), time.perf_counter()
    experiment = build(config, loaded, placeholder_seen=True)
    built = time.perf_counter() - read
    step = _cost(experiment, _trainer(experiment), "train", experiment.first_epoch())
    call = experiment.adapted_call(experiment.trainable)
    forward = _cost(experiment, call, "validation", _scored(experiment, "validation"))
    batches = itertools.islice(experiment.plan().start(), experiment.loop.steps)
    trained = Counter(batch.padded_length for batch in batches)
    predicted = predictions(experiment)
    return Estimate(
        read - began + step.compiled(trained) + forward.compiled(predicted),
        built,
        step.called(trained) + forward.called(predicted),
        experiment.loop.steps,
    )


def writes(config: RunConfig) -> bool:
    """Whether a run ends with texts that its language model writes."""
    return isinstance(config, TextConfig) and config.generate.writes


def predictions(experiment: Experiment) -> Counter[int]:
    """How many batches a run predicts without training, by padded length."""
    loop, unlabelled = experiment.loop, experiment.texts.task.unlabelled
    times = sum(map(loop.evaluates, range(1, loop.steps + 1))) + loop.evaluate_first
    if experiment.config.train.select == "best":
        times += 1  # to store its outputs: they are kept of the last evaluation alone
    parts = dict.fromkeys(experiment.scored, times)
    found = Counter[int]()
    for part, count in {**parts, **dict.fromkeys(unlabelled, 1)}.items():
        for batch in _scored(experiment, part):
            found[batch.padded_length] += count
    return found


def _scored(experiment: Experiment, part: str) -> list[data.PlannedBatch]:
    """The batches in which a part is evaluated."""
    lengths = experiment.texts.encoded[part].lengths
    return data.eval_plan(lengths, experiment.batch_size, experiment.texts.boundaries)


def _trainer(experiment: Experiment) -> Callable[[Any], Any]:
    """A training step as a function of its batch."""
    step, state = experiment.make_step(), experiment.start()

    def call(batch: Any) -> Any:
        nonlocal state
        state, values = step(state, experiment.separated, batch)
        return values

    return call


def _cost(
    experiment: Experiment,
    call: Callable[[Any], Any],
    part: str,
    plan: Sequence[data.PlannedBatch],
) -> Cost:
    """Time a call on the longest batch of a plan for a part."""
    longest = max(plan, key=lambda batch: batch.padded_length)
    arrays = experiment.batch(part, longest)
    first, *others = [_timed(call, arrays) for _ in range(1 + _REPEATS)]
    return Cost(max(first - min(others), 0.0), min(others), longest.padded_length)


def _timed(call: Callable[[Any], Any], batch: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call(batch))
    return time.perf_counter() - began
