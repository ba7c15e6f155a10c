"""`--launcher=ray`: run the jobs of a sweep as tasks of a Ray cluster, which end with this process.

`connected` finds the cluster, `launch` gives it tasks, and `attend` is what each task does.
"""

import contextlib
import importlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import local
from lora_jax.messages import first_line

_ADDRESS = flags.DEFINE_string(
    "ray_address",
    "auto",
    "The Ray cluster: auto for the one that runs on this machine or that RAY_ADDRESS names, "
    "HOST:PORT, or local to start one on this machine that ends with the command.",
)
_NAMES = {"cpus": "CPU", "gpus": "GPU", "tpus": "TPU", "memory": "memory"}
"""Ray's names of what a job gets."""
_RESOURCES = flags.DEFINE_list(
    "ray",
    [],
    "What each job gets of a machine, such as --ray=cpus=4,gpus=1,memory=32. tpus are TPU chips, "
    "and memory is in GiB. The default is one CPU.",
)
RETRIES = flags.DEFINE_integer(
    "ray_retries",
    3,
    "How often a job begins again after its process or its machine has died.",
    lower_bound=0,
)

_STORE = 100 * 2**20  # bytes; a sweep's tasks pass no objects, and Ray wants 75 MiB at least
_REACHED = 5.0  # seconds; Ray itself would try for two minutes
_TICK = 0.2  # seconds; between the ticks, Ray can raise KeyboardInterrupt in a task
_LOOK = 0.5  # seconds between looks at the tasks


def demand() -> dict[str, int]:
    """What each job gets, by Ray's names, from `--ray`."""
    found = {"CPU": 1, **jobs.resources("ray", _RESOURCES.value, _NAMES)}
    if found.get("GPU") and found.get("TPU"):
        raise ValueError("--ray: a job runs on one kind of device; give gpus or tpus")
    return found | {"memory": found.get("memory", 0) * 2**30}


def shortage(demand: Mapping[str, int], machines: Sequence[Mapping[str, float]]) -> str:
    """A line if a job fits on none of these machines; empty if it fits on one.

    Args:
      machines: Ray's resources of each machine, such as `{"CPU": 8.0, "memory": 3e10}`.
    """
    if any(all(each.get(name, 0) >= n for name, n in demand.items()) for each in machines):
        return ""
    units = {"memory": "bytes of memory"}
    asked = ", ".join(f"{n} {units.get(name, name)}" for name, n in demand.items() if n)
    return f"--ray: no machine of the Ray cluster has {asked}"


def address() -> str:
    """The cluster's address, as in `connected`."""
    return str(_ADDRESS.value)


def require() -> Any:
    """Import Ray; raise a ValueError if it is not installed."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ValueError(
            '--launcher=ray needs Ray: pip install "lora-jax[ray]", or --launcher=local'
        ) from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`. At the end, all tasks of this process end.

    Args:
      address: `auto` for the cluster that runs on this machine or that RAY_ADDRESS names, a
        cluster's `HOST:PORT`, or `local` for a new one of this machine, which ends with this.

    Raises:
      ValueError: there is no such cluster, or Ray is not installed.
    """
    ray = require()
    there = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if there not in ("", "auto", "local"):
        _reach(there)
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
        options = {"object_store_memory": _STORE, "include_dashboard": False}
    own = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            # JAX warns of forks, of which those here begin another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        hint = "" if address == "local" else "; --ray_address=local starts one on this machine"
        raise ValueError(f"--ray_address={address}: {said}{hint}") from error
    try:
        signal.signal(signal.SIGTERM, own)  # Ray has replaced it
        yield ray
    finally:
        ray.shutdown()


def machines(ray: Any) -> list[dict[str, float]]:
    """Ray's resources of each machine of the cluster."""
    return [each["Resources"] for each in ray.nodes() if each["Alive"]]


def _reach(address: str) -> None:
    """Raise a ValueError unless something answers at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _REACHED).close()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"no Ray cluster answers at {address}: {said}") from error


def launch(
    todo: Sequence[jobs.Job],
    folder: SweepFolder,
    ray: Any,
    demand: Mapping[str, int],
    retries: int,
    watch: Callable[[], None],
    command: Callable[[SweepFolder, jobs.Job], list[str]] = jobs.command,
) -> None:
    """Run all jobs, as many at a time as the cluster has room for, and return when all have ended.

    If a job's process is killed, or dies with its machine, the job begins again, on any machine,
    and goes on from its checkpoint. After the last retry, the trials that it was training are noted
    as killed, and the others get a new process. A job that saved its state after SIGTERM, as when
    its machine is to end, always begins again.

    When this function ends with an error, it ends the tasks too: with `local.Terminated` so that
    they save, otherwise at once.

    Args:
      ray: the connected module, from `connected`.
      retries: how often a job begins again after its process died.
      watch: called often, to show the progress of the trials.
      command: gives the command line that trains a job. Every machine runs it in this folder.
    """
    # Workers unpickle it where `experiments` may not be importable.
    importlib.import_module("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])
    others = {name: n for name, n in demand.items() if name not in ("CPU", "GPU", "memory") and n}
    task = ray.remote(
        max_retries=0,
        num_cpus=demand["CPU"],
        num_gpus=demand.get("GPU", 0),
        memory=demand.get("memory") or None,
        resources=others or None,
    )(attend)
    running: dict[Any, tuple[jobs.Job, int]] = {}  # a job, and which of its attempts it is

    def start(job: jobs.Job, number: int = 1) -> None:
        line = [*command(folder, job), f"--lock_wait={jobs.LOCK_WAIT}"]
        log = str(folder.log(job[0].name).resolve())
        running[task.remote(line, os.getcwd(), log)] = job, number

    try:
        for job in todo:
            start(job)
        while running:
            done, _ = ray.wait(list(running), timeout=_LOOK)
            watch()
            for reference in done:
                (job, number), (process, code, why) = running.pop(reference), _end(ray, reference)
                died = code is None or code < 0
                if code == TEMPORARY_FAILURE:
                    start(job, number)
                elif died and number <= retries:
                    print(f"{job[0].name}: {why}, so its job begins again")
                    start(job, number + 1)
                else:
                    times = f"{why}, the last of {number} times" if died and number > 1 else ""
                    process = process or _begun_by(job, folder)
                    said = times or (why if code is None else "")
                    if rest := local.settle(job, folder, process, code or 0, said):
                        start(rest)
        watch()
    except local.Terminated:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running))
        raise
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _end(ray: Any, reference: Any) -> tuple[int, int | None, str]:
    """The process of a task, its code, and what ended it; code None if the task itself failed."""
    try:
        process, code = ray.get(reference)
        return process, code, local.cause(code, 0)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # of an error in the task itself
        return 0, None, f"its Ray task ended ({first_line(cause)})"


def _begun_by(job: jobs.Job, folder: SweepFolder) -> int:
    """The process that was training the job's trials; 0 if none has begun."""
    states = [folder.state(trial) for trial in job]
    return next((each.process for each in states if each.status in ("running", "interrupted")), 0)


def attend(line: Sequence[str], folder: str, log: str) -> tuple[int, int]:
    """Run a command that takes `--leash`, and return its process id and exit code.

    The command ends with this process, even if this process is killed. If the task is cancelled, or
    its machine asks it to end, the command gets SIGTERM and time to save its state. When the
    machine asked, the code is EX_TEMPFAIL, as of a command that saved, if it had nothing to save.

    Args:
      folder: the folder in which the command runs.
      log: the file to which its output is appended.
    """
    path, told, code = pathlib.Path(log), list[int](), None
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers = {
        # Ray's own handler ends this process, and how the command ended would not be known.
        signal.SIGTERM: lambda number, _: told.append(number),
        # A cancelled task gets SIGINT; a cluster that a shell started in its background ignores it.
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with path.open("ab") as output:
            process = subprocess.Popen(
                [*line, "--leash"],
                cwd=folder,
                stdin=subprocess.PIPE,  # end of file tells the command that this process has died
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=_TICK)
                if told:
                    process.terminate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    finally:
        for number, handler in before.items():  # None if Python did not install the handler
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return process.pid, os.EX_TEMPFAIL if told and code == -signal.SIGTERM else code
