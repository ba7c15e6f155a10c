"""The Job for Kubernetes: it is one, and failed pods have the fate that a sweep wants."""

import json
import re
import signal
from pathlib import Path, PurePosixPath

import commands
import job_controller
import jsonschema
import launcher_contract
import pytest
import tiny_sweep
import yaml
from absl.testing import flagsaver
from job_controller import Ended

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps import job_list, jobs
from experiments.sweeps.launchers import kubernetes, kubernetes_flags
from lora_jax.records import run_record
from lora_jax.records.metrics_log import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SCHEMA = Path(__file__).parents[1] / "fixtures" / "kubernetes_job.json"
PODS = kubernetes.Pods("registry/lora:1", "claim", PurePosixPath("/v/cola"), PurePosixPath("/v"))
FULL = kubernetes.Pods(
    image="registry/lora:1",
    claim="claim",
    folder=PurePosixPath("/v/$(HOME)/$$cola"),
    mount=PurePosixPath("/v"),
    command=("lora-jax", "worker"),
    directory="/src",
    cpus=4,
    memory=16,
    tpus=8,
    selectors={"cloud.google.com/gke-tpu-topology": "2x4"},
    environment={"HF_HOME": "/v/$(hub)"},
    namespace="research",
    parallel=2,
    retries=0,
    grace=30,
)


@pytest.fixture(scope="module")
def validate():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema).validate


@pytest.mark.parametrize("pods", [PODS, FULL])
def test_the_manifest_is_a_job_of_kubernetes(validate, pods):
    """Also by the rules that its documentation states and the schema does not."""
    job = kubernetes.manifest("sweep-cola-1", 3, pods, ["--retry"])
    validate(job)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # with a podFailurePolicy
    assert spec["podReplacementPolicy"] == "Failed"  # likewise
    assert spec["completionMode"] == "Indexed"  # with a backoffLimitPerIndex
    names = {container["name"] for container in pod["containers"]}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("Ignore", "FailIndex", "FailJob", "Count")
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] in names
            assert 0 not in codes["values"] and codes["values"] == sorted(set(codes["values"]))
    mounts = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}


def test_the_schema_refuses_what_kubernetes_does_not_know(validate):
    for part, wrong in (("spec", {"complitions": 3}), ("spec", {"completions": "3"})):
        job = kubernetes.manifest("sweep-cola-1", 3, PODS)
        job[part] |= wrong
        with pytest.raises(jsonschema.ValidationError):
            validate(job)


def test_each_pod_gets_what_was_asked_for():
    job = kubernetes.manifest("name", 3, FULL, ["--retry"])
    pod, container = job["spec"]["template"]["spec"], job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"] == {"name": "name", "namespace": "research"}
    assert job["spec"]["parallelism"] == 2
    assert job["spec"]["backoffLimitPerIndex"] == 0
    assert container[0]["resources"] == {
        "requests": {"cpu": "4", "memory": "16Gi"},
        "limits": {"memory": "16Gi", "google.com/tpu": "8"},
    }
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-topology": "2x4"}
    assert [each["key"] for each in pod["tolerations"]] == ["google.com/tpu"]
    assert pod["terminationGracePeriodSeconds"] == 30
    assert container[0]["env"] == [{"name": "HF_HOME", "value": "/v/$$(hub)"}]
    assert job_controller.process(2, container[0]) == [
        *("lora-jax", "worker", "--workdir=/v/$(HOME)/$$cola"),
        *("--jobs=/v/$(HOME)/$$cola/jobs/name.json", "--job=2", "--lock_wait=120", "--retry"),
    ]


@pytest.mark.parametrize(
    ("ends", "fate"),
    [
        ([Ended(TEMPORARY_FAILURE)] * 9 + [Ended(0)], ("Succeeded", 10)),
        ([Ended(137, disrupted=True)] * 9 + [Ended(0)], ("Succeeded", 10)),
        ([Ended(1)], ("Failed", 1)),
        ([Ended(1, disrupted=True), Ended(0)], ("Succeeded", 2)),
        ([Ended(137)] * 3 + [Ended(0)], ("Succeeded", 4)),
        ([Ended(139)] * 4, ("Failed", 4)),
    ],
)
def test_a_pod_that_failed_has_the_fate_of_its_code(ends, fate):
    """Preempted ones begin again uncounted, failed trials do not, crashed ones three times."""
    given = iter(ends)
    job = kubernetes.manifest("name", 1, PODS)
    assert job_controller.run(job, lambda *_: next(given)) == {0: fate}
    assert list(given) == []


def test_the_same_command_writes_a_job_of_a_new_name(tmp_path):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0:5")
    whole, written = jobs.make(found, 2), []
    for todo in (whole, whole, whole[1:]):
        said = kubernetes.write(todo, folder, PODS)
        assert said[1].startswith("kubectl apply -f ")
        path = Path(said[1].removeprefix("kubectl apply -f "))
        job = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = job["metadata"]["name"]
        assert path.stem == name
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"{name}-{kubernetes.MOST}") < 64  # the host name of a pod
        listed = [job_list.read(folder.path / "jobs" / f"{name}.json", n) for n in range(len(todo))]
        assert listed == [[trial.name for trial in each] for each in todo]
        assert job["spec"]["completions"] == len(todo)
        written.append(name)
    assert len(set(written)) == 3
    elsewhere = kubernetes.Pods("image", "claim", PurePosixPath("/v/b/cola"), PurePosixPath("/v"))
    assert kubernetes.write(whole, folder, elsewhere)[1].split("/")[-1] not in {
        f"{name}.yaml" for name in written
    }


def test_names_of_any_folder_are_names_of_jobs(tmp_path):
    folder, found = launcher_contract.sweep(tmp_path, "config.seed=0")
    for name in ("Übung 3", "___", "x" * 100, "7b"):
        pods = kubernetes.Pods("i", "c", PurePosixPath("/v") / name, PurePosixPath("/v"))
        said = kubernetes.write([found], folder, pods)
        found_name = said[1].rpartition("/")[2].removesuffix(".yaml")
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", found_name), name
        assert len(f"{found_name}-{kubernetes.MOST}") < 64


GOOD = {"kubernetes_image": "registry.io:5000/lora/jax:1", "kubernetes_claim": "my-claim"}


@pytest.fixture
def given(monkeypatch):
    """`given(flag=value)`: what the flags say, beside those that are always needed."""

    def read(**values):
        flags = kubernetes_flags.flags.FLAGS
        flags.mark_as_parsed()
        with flagsaver.flagsaver(**(GOOD | values)):
            return kubernetes_flags.pods(Path("/v/runs/cola"))

    return read


def test_flags_say_what_pods_get(given):
    pods = given(kubernetes_gpus=2, kubernetes_node_selector=["a.io/b=c"], kubernetes_env=["A=b=c"])
    assert (pods.gpus, pods.selectors, pods.environment) == (2, {"a.io/b": "c"}, {"A": "b=c"})
    assert (str(pods.folder), str(pods.mount)) == ("/v/runs/cola", "/v/runs")
    assert pods.command == ("python", "-m", "experiments.worker")
    pods = given(kubernetes_folder="/data/cola", kubernetes_mount="/data")
    assert (str(pods.folder), str(pods.mount)) == ("/data/cola", "/data")


@pytest.mark.parametrize(
    "image",
    ["jax", "a__b/c-d.e:V1.2-x", "localhost/jax", "Host.io/me/jax", f"me/jax:1@sha256:{'0a' * 32}"],
)
def test_names_of_images(given, image):
    assert given(kubernetes_image=image).image == image


def test_the_image_of_the_documents_has_what_starts_a_worker():
    """Its `python`, the first on PATH, is that of the environment; `command` skips ENTRYPOINT."""
    page = commands.ROOT / "docs" / "guides" / "accelerators.md"
    (image,) = re.findall(r"```text\n(FROM .*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    said = dict(re.findall(r"^(COPY|WORKDIR|RUN|ENV) (.*)$", image, re.MULTILINE))
    environment = re.fullmatch(r"make (\S+)/installed", said["RUN"])
    assert environment is not None
    assert said["COPY"] == f". {said['WORKDIR']}"  # the project, which `-m` finds there
    assert said["ENV"] == f"PATH={said['WORKDIR']}/{environment[1]}/bin:$PATH"
    assert PODS.command[0] == "python"


LABEL = "cloud.google.com/gke-tpu-accelerator"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kubernetes_image": None}, "needs --kubernetes_image: a container image"),
        ({"kubernetes_claim": None}, "needs --kubernetes_claim: the PersistentVolumeClaim"),
        *(
            ({"kubernetes_image": image}, f"--kubernetes_image={image}: expected an image")
            for image in ("a b", "My_Image:", "Image", "a:", "a/", "/a", "a@", "a:b:c", "a___b:1")
        ),
        ({"kubernetes_claim": "My_Claim"}, "--kubernetes_claim=My_Claim: .*; nearest: my-claim"),
        ({"kubernetes_namespace": "a.b"}, "--kubernetes_namespace=a.b: .*; nearest: a-b"),
        ({"kubernetes_env": ["A"]}, "--kubernetes_env=A: expected NAME=VALUE"),
        ({"kubernetes_env": ["A=1", "A=2"]}, "--kubernetes_env=A=2: A is 1 already"),
        ({"kubernetes_node_selector": ["a=b c"]}, "--kubernetes_node_selector=a=b c: expected"),
        (
            {"kubernetes_mount": "/other"},
            "--kubernetes_mount=/other: .* /v/runs/cola is not inside",
        ),
        ({"kubernetes_mount": "/"}, "--kubernetes_mount=/: a volume there would hide"),
        ({"kubernetes_folder": "cola"}, "--kubernetes_folder=cola: expected a path that begins"),
        ({"kubernetes_command": " "}, "--kubernetes_command is empty"),
        ({"kubernetes_command": "a '"}, "--kubernetes_command=a ': No closing quotation"),
        ({"kubernetes_gpus": 1, "kubernetes_tpus": 1}, "--kubernetes_gpus and --kubernetes_tpus"),
        (
            {"kubernetes_tpus": 4},
            f"--kubernetes_tpus=4 needs --kubernetes_node_selector={LABEL}=...$",
        ),
        (
            {"kubernetes_tpus": 4, "kubernetes_node_selector": [f"{LABEL[:-1]}=x"]},
            f"needs --kubernetes_node_selector={LABEL}=...; nearest given: '{LABEL[:-1]}'",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(given, values, said):
    with pytest.raises(ValueError, match=said) as caught:
        given(**values)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_preempted_pod_saves_and_the_next_one_goes_on(tmp_path):
    """The whole way: the command, its manifest, the worker, and the command again."""
    epochs, workdir = 25, tmp_path / "sweep"
    line = ["experiments.sweep", *tiny_sweep.flags(tmp_path, epochs), "--sweep=config.seed=0"]
    line += [f"--workdir={workdir}", "--launcher=kubernetes", "--noaudit"]
    line += [f"--{name}={value}" for name, value in GOOD.items()]
    done = commands.run(*line, **commands.with_devices(1))
    assert done.returncode == 0, done.stderr
    run = workdir / "trials" / "seed=0"

    def pod(index, container):
        words = job_controller.process(index, container)
        assert words[:2] == ["python", "-m"]
        started = commands.Started(*words[2:], **commands.with_devices(1))
        if not (run / "metrics.jsonl").exists():
            while started.running and len(lines(run)) < 3:
                pass
            started.send(signal.SIGTERM)
        return Ended(started.end().returncode)

    (path,) = (workdir / "kubernetes").iterdir()
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert job_controller.run(job, pod) == {0: ("Succeeded", 2)}
    record = run_record.read(run)
    assert record is not None
    assert (record.status, record.steps) == ("completed", epochs)
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, epochs + 1))

    done = commands.run(*line, **commands.with_devices(1))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1 trials: 1 completed")
    assert list((workdir / "kubernetes").iterdir()) == [path]


def lines(run):
    """Those of a run's metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []
