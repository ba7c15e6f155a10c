"""`--launcher=kubernetes`: write an indexed Job for `kubectl apply`, whose pods train the jobs.

The pod of index N trains job N of a list in the sweep's folder, which is on a volume that all pods
share. The Job is of the API batch/v1. Its `backoffLimitPerIndex` and `FailIndex` are on by default
from Kubernetes 1.29 on (https://kubernetes.io/docs/concepts/workloads/controllers/job/).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from experiments.plurals import count
from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps import job_list, jobs
from experiments.sweeps.folder import SweepFolder
from lora_jax.files.atomic import write_atomically

MOST = 10_000
"""The most jobs: beyond, Kubernetes asks for further limits."""

_CONTAINER = "worker"
_VOLUME = "sweep"
_STEM = 36  # characters of a name; with a digest and numbers it must stay below 64
_FAILED = (1, 2)
"""The exit codes of a worker that a second attempt would not help."""


@dataclasses.dataclass(frozen=True)
class Pods:
    """What each pod runs, where, and with what."""

    image: str
    claim: str
    """The PersistentVolumeClaim with the sweep's folder."""
    folder: PurePosixPath
    """The sweep's folder as the pods see it."""
    mount: PurePosixPath
    """Where the pods mount the volume; `folder` is inside."""
    command: tuple[str, ...] = ("python", "-m", "experiments.worker")
    directory: str | None = None
    """The folder in which the command runs; None for that of the image."""
    cpus: int | None = None
    memory: int | None = None
    """GiB."""
    gpus: int = 0
    tpus: int = 0
    """TPU chips."""
    selectors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The labels of the nodes to run on."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    namespace: str | None = None
    parallel: int | None = None
    """The most pods at a time; None for all."""
    retries: int = 3
    """How often a job begins again after its pod died."""
    grace: int = 120
    """The seconds that a pod has to save its state when it is asked to end."""


def write(
    todo: Sequence[jobs.Job], folder: SweepFolder, pods: Pods, options: Sequence[str] = ()
) -> list[str]:
    """Write the list of jobs and the manifest of a new Job; return lines that say what to do next.

    Args:
      options: further flags of the worker.

    Raises:
      ValueError: there are too many jobs for one Job.
    """
    if len(todo) > MOST:
        raise ValueError(
            f"--launcher=kubernetes: {len(todo):,} jobs, and a Job has at most {MOST:,} indexes; "
            "raise --per_job, or divide them by --shard"
        )
    names = [[trial.name for trial in job] for job in todo]
    name = _new_name(folder, pods, names)
    job_list.write(folder.path / "jobs" / f"{name}.json", names)
    path = folder.path / "kubernetes" / f"{name}.yaml"
    text = yaml.safe_dump(manifest(name, len(todo), pods, options), sort_keys=False)
    write_atomically(path, text.encode())
    return [
        f"wrote {path}: {count(len(todo), 'job')} of {sum(map(len, todo))} trials",
        f"kubectl apply -f {path}",
        "the same command with --dry_run tells how far they are",
    ]


def manifest(name: str, count: int, pods: Pods, options: Sequence[str] = ()) -> dict[str, Any]:
    """The Job of `count` indexes that train the jobs of the list `jobs/NAME.json`."""
    namespace = {"namespace": pods.namespace} if pods.namespace else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, **namespace},
        "spec": {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": min(pods.parallel or count, count),
            "backoffLimitPerIndex": pods.retries,
            "podReplacementPolicy": "Failed",  # a new pod of an index waits until the old one ended
            "podFailurePolicy": {"rules": _rules()},
            "template": {"spec": _pod(name, pods, options)},
        },
    }


def _rules() -> list[dict[str, Any]]:
    """What happens after a pod failed; the first rule that fits decides.

    All other ends, such as 137 when memory runs out, count towards `backoffLimitPerIndex`.
    """
    preempted = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        {"action": "Ignore", "onPodConditions": preempted},
        {"action": "Ignore", "onExitCodes": _codes([TEMPORARY_FAILURE])},
        {"action": "FailIndex", "onExitCodes": _codes(_FAILED)},
    ]


def _codes(codes: Sequence[int]) -> dict[str, Any]:
    return {"containerName": _CONTAINER, "operator": "In", "values": list(codes)}


def _pod(name: str, pods: Pods, options: Sequence[str]) -> dict[str, Any]:
    devices = {"nvidia.com/gpu": pods.gpus, "google.com/tpu": pods.tpus}
    devices = {key: count for key, count in devices.items() if count}
    directory = {"workingDir": pods.directory} if pods.directory else {}
    variables = [{"name": key, "value": _literal(v)} for key, v in pods.environment.items()]
    container = {
        "name": _CONTAINER,
        "image": pods.image,
        **directory,
        "command": [_literal(word) for word in pods.command],
        "args": [
            _literal(f"--workdir={pods.folder}"),
            _literal(f"--jobs={pods.folder / 'jobs' / f'{name}.json'}"),
            "--job=$(JOB_COMPLETION_INDEX)",  # Kubernetes puts the pod's index there
            f"--lock_wait={jobs.LOCK_WAIT}",
            *map(_literal, options),
        ],
        **({"env": variables} if variables else {}),
        "resources": _resources(pods, devices),
        "volumeMounts": [{"name": _VOLUME, "mountPath": str(pods.mount)}],
    }
    # Clusters keep other pods away from machines with devices by a taint of the device's name.
    tolerations = [{"key": k, "operator": "Exists", "effect": "NoSchedule"} for k in devices]
    return {
        "restartPolicy": "Never",  # which a podFailurePolicy needs
        "terminationGracePeriodSeconds": pods.grace,
        **({"nodeSelector": dict(pods.selectors)} if pods.selectors else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        "containers": [container],
        "volumes": [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": pods.claim}}],
    }


def _resources(pods: Pods, devices: Mapping[str, int]) -> dict[str, Any]:
    """Requests and limits; no limit on CPUs, which would only slow a pod where others rest."""
    memory = {"memory": f"{pods.memory}Gi"} if pods.memory else {}
    requests = {**({"cpu": str(pods.cpus)} if pods.cpus else {}), **memory}
    # Of devices, Kubernetes takes whole numbers, and the request is the limit.
    limits = {**memory, **{key: str(count) for key, count in devices.items()}}
    return {
        **({"requests": requests} if requests else {}),
        **({"limits": limits} if limits else {}),
    }


def _literal(text: str) -> str:
    """A text that Kubernetes leaves as it is: it expands `$(VARIABLE)`, and makes `$` of `$$`."""
    return text.replace("$", "$$")


def _new_name(folder: SweepFolder, pods: Pods, names: Sequence[Sequence[str]]) -> str:
    """A name that no earlier Job of this sweep has, nor one of another folder or shard.

    kubectl takes a Job of an old name for the old Job, and would start nothing.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", pods.folder.name.lower()).strip("-")[:_STEM].strip("-")
    text = json.dumps([str(pods.folder), names])
    # A Job's name begins with a letter, as that of a pod's host does.
    start = f"sweep-{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".replace("--", "-")
    number = 1
    while (folder.path / "kubernetes" / f"{start}-{number}.yaml").exists():
        number += 1
    return f"{start}-{number}"
