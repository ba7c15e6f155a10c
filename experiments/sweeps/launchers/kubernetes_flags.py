"""The flags of `--launcher=kubernetes`."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from absl import flags

from experiments.sweeps.launchers.kubernetes import Pods
from lora_jax.suggest import nearest

_IMAGE = flags.DEFINE_string(
    "kubernetes_image", None, "The container image, with this project and what it needs."
)
_CLAIM = flags.DEFINE_string(
    "kubernetes_claim", None, "The PersistentVolumeClaim that has the sweep's folder."
)
_FOLDER = flags.DEFINE_string(
    "kubernetes_folder", None, "The sweep's folder as the pods see it. The default is --workdir."
)
_MOUNT = flags.DEFINE_string(
    "kubernetes_mount",
    None,
    "Where the pods mount the volume. The default is the folder that has --kubernetes_folder.",
)
_COMMAND = flags.DEFINE_string(
    "kubernetes_command",
    shlex.join(Pods.command),
    "The command in the image that starts a worker.",
)
_DIRECTORY = flags.DEFINE_string(
    "kubernetes_directory",
    None,
    "The folder in the image in which the command runs. The default is the image's own.",
)
_CPUS = flags.DEFINE_integer(
    "kubernetes_cpus", None, "How many CPUs each pod gets. The default is any.", lower_bound=1
)
_MEMORY = flags.DEFINE_integer(
    "kubernetes_memory",
    None,
    "How many GiB of memory each pod gets at most. The default is any.",
    lower_bound=1,
)
_GPUS = flags.DEFINE_integer("kubernetes_gpus", 0, "How many GPUs each pod gets.", lower_bound=0)
_TPUS = flags.DEFINE_integer(
    "kubernetes_tpus",
    0,
    "How many TPU chips each pod gets: all those of a machine of the kind that is selected.",
    lower_bound=0,
)
_SELECTORS = flags.DEFINE_multi_string(
    "kubernetes_node_selector", [], "LABEL=VALUE: run pods only on nodes with this label."
)
_ENVIRONMENT = flags.DEFINE_multi_string(
    "kubernetes_env", [], "NAME=VALUE, an environment variable of the pods."
)
_NAMESPACE = flags.DEFINE_string(
    "kubernetes_namespace", None, "The Job's namespace. The default is kubectl's own."
)
_PARALLEL = flags.DEFINE_integer(
    "kubernetes_parallel", None, "How many pods may run at a time. The default is all.", 1
)
_RETRIES = flags.DEFINE_integer(
    "kubernetes_retries",
    Pods.retries,
    "How often a job begins again after its pod died. Preempted pods do not count.",
    lower_bound=0,
)
_GRACE = flags.DEFINE_integer(
    "kubernetes_grace",
    Pods.grace,
    "The seconds that a pod has to save its state when it is asked to end.",
    lower_bound=1,
)

_VALUE = r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
_LABEL = rf"([a-z0-9][-a-z0-9.]*/)?{_VALUE}"
_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE_FORM = (
    rf"([A-Za-z0-9][-A-Za-z0-9.]*(:\d+)?/)?{_NAME}(/{_NAME})*"
    r"(:\w[-\w.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
"""A registry, the path in it, a tag and a digest: github.com/distribution/reference."""
_TPU_LABELS = ("cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology")


def pods(workdir: Path) -> Pods:
    """What the flags say of the pods.

    Raises:
      ValueError: a flag is missing, or has a value that Kubernetes would refuse.
    """
    if not _IMAGE.value:
        raise ValueError(
            "--launcher=kubernetes needs --kubernetes_image: a container image with this project"
        )
    if not _CLAIM.value:
        raise ValueError(
            "--launcher=kubernetes needs --kubernetes_claim: the PersistentVolumeClaim with the "
            "sweep's folder"
        )
    image, claim, namespace = str(_IMAGE.value), str(_CLAIM.value), _NAMESPACE.value
    if not re.fullmatch(_IMAGE_FORM, image, re.ASCII):
        raise ValueError(
            f"--kubernetes_image={image}: expected an image such as registry/name:tag, with a name "
            "in small letters and a tag that is not empty"
        )
    _require_name("claim", claim, "-.", 253)
    if namespace is not None:
        _require_name("namespace", namespace, "-", 63)
    folder, mount = _folders(workdir)
    selectors = _pairs("node_selector", _SELECTORS.value, _LABEL, f"({_VALUE})?")
    tpus = int(_TPUS.value or 0)
    if tpus and _GPUS.value:
        raise ValueError("--kubernetes_gpus and --kubernetes_tpus: a pod runs on one of them")
    if tpus and (missing := [label for label in _TPU_LABELS if label not in selectors]):
        near = f"; nearest given: {nearest(missing[0], selectors, 1)}" if selectors else ""
        raise ValueError(
            f"--kubernetes_tpus={tpus} needs --kubernetes_node_selector={missing[0]}=...{near}"
        )
    command = tuple(_words(str(_COMMAND.value)))
    return Pods(
        image=image,
        claim=claim,
        folder=folder,
        mount=mount,
        command=command,
        directory=_DIRECTORY.value,
        cpus=_CPUS.value,
        memory=_MEMORY.value,
        gpus=int(_GPUS.value or 0),
        tpus=tpus,
        selectors=selectors,
        environment=_pairs("env", _ENVIRONMENT.value, r"[A-Za-z_]\w*", "(?s:.*)"),
        namespace=namespace,
        parallel=_PARALLEL.value,
        retries=int(_RETRIES.value or 0),
        grace=int(_GRACE.value or 1),
    )


def _folders(workdir: Path) -> tuple[PurePosixPath, PurePosixPath]:
    """The sweep's folder as the pods see it, and where they mount the volume."""
    folder = PurePosixPath(_FOLDER.value or workdir.resolve())
    mount = PurePosixPath(_MOUNT.value or folder.parent)
    for name, path in (("folder", folder), ("mount", mount)):
        if not path.is_absolute() or ".." in path.parts:
            raise ValueError(f"--kubernetes_{name}={path}: expected a path that begins with /")
    if mount == PurePosixPath("/"):
        raise ValueError("--kubernetes_mount=/: a volume there would hide the image's own files")
    if not folder.is_relative_to(mount):
        raise ValueError(
            f"--kubernetes_mount={mount}: the sweep's folder {folder} is not inside; "
            "--kubernetes_folder says where the pods see it"
        )
    return folder, mount


def _require_name(flag: str, name: str, signs: str, longest: int) -> None:
    """Raise a ValueError unless Kubernetes takes a name: signs are inside, not at the ends."""
    form = rf"[a-z0-9]([a-z0-9{re.escape(signs)}]*[a-z0-9])?"
    if not re.fullmatch(form, name) or len(name) > longest:
        near = re.sub("[^a-z0-9]+", "-", name.lower())[:longest].strip("-")
        raise ValueError(
            f"--kubernetes_{flag}={name}: expected small letters, digits and '-'"
            + (f"; nearest: {near}" if near else "")
        )


def _pairs(flag: str, given: Sequence[str] | None, name: str, value: str) -> dict[str, str]:
    """The entries NAME=VALUE of a flag; `name` and `value` are the forms of both."""
    found: dict[str, str] = {}
    for each in given or ():
        key, equals, text = each.partition("=")
        whole = equals and re.fullmatch(name, key, re.ASCII) and re.fullmatch(value, text, re.ASCII)
        if not whole:
            raise ValueError(f"--kubernetes_{flag}={each}: expected NAME=VALUE")
        if found.setdefault(key, text) != text:
            raise ValueError(f"--kubernetes_{flag}={each}: {key} is {found[key]} already")
    return found


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--kubernetes_command={command}: {error}") from error
    if not words:
        raise ValueError("--kubernetes_command is empty: expected a command that starts a worker")
    return words
