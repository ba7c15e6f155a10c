"""What Kubernetes does with an indexed Job, by its documentation, for tests without a cluster.

https://kubernetes.io/docs/concepts/workloads/controllers/job/, "Pod failure policy" and "Backoff
limit per index".
"""

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a pod ended: the code of its container, and whether its node was to be vacated."""

    code: int
    disrupted: bool = False


Pod = Callable[[int, dict[str, Any]], Ended]
"""Runs a pod, given its index and its container."""


def run(job: dict[str, Any], pod: Pod) -> dict[int, tuple[str, int]]:
    """The fate of each index, `Succeeded` or `Failed`, and how many pods it took."""
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    fates = {}
    for index in range(spec["completions"]):
        counted = pods = 0
        while True:
            pods += 1
            ended = pod(index, container)
            if ended.code == 0:
                fates[index] = ("Succeeded", pods)
                break
            action = _action(spec["podFailurePolicy"]["rules"], ended, container["name"])
            counted += action == "Count"
            if action == "FailIndex" or counted > spec["backoffLimitPerIndex"]:
                fates[index] = ("Failed", pods)
                break
    return fates


def _action(rules: list[dict[str, Any]], ended: Ended, container: str) -> str:
    """That of the first rule that fits."""
    for rule in rules:
        conditions = rule.get("onPodConditions", [])
        if ended.disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions:
            return rule["action"]
        if (codes := rule.get("onExitCodes")) and codes["containerName"] == container:
            assert codes["operator"] == "In"
            if ended.code in codes["values"]:
                return rule["action"]
    return "Count"


def process(index: int, container: dict[str, Any]) -> list[str]:
    """The command line of a pod, with the variables that Kubernetes gives it."""
    variables = {each["name"]: each["value"] for each in container.get("env", [])}
    variables["JOB_COMPLETION_INDEX"] = str(index)

    def expanded(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    line = container["command"] + container["args"]
    return [re.sub(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)", expanded, word) for word in line]


def pod(index: int, container: dict[str, Any]) -> Ended:
    """Run the container's command as a process of this machine, which has the volume's paths."""
    directory = container.get("workingDir", os.getcwd())
    code = subprocess.run(process(index, container), cwd=directory, check=False).returncode
    return Ended(code if code >= 0 else 128 - code)
