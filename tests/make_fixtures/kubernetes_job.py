"""Write `tests/fixtures/kubernetes_job.json`: the schema of Kubernetes' batch/v1 Job.

    pip install kubernetes-validate==1.37.0
    python tests/make_fixtures/kubernetes_job.py

kubernetes-validate (Apache-2.0, 108 MB) has the OpenAPI description that Kubernetes 1.37 publishes
(Apache-2.0) as JSON schemas, which refuse unknown fields. Only descriptions, and what a Job does
not refer to, are left out.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate

VERSION = "1.37.0"
TARGET = Path(__file__).parents[1] / "fixtures" / "kubernetes_job.json"


def plain(value: Any) -> Any:
    """A schema without descriptions, its references within one file."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return {"$ref": f"#/$defs/{value['$ref'].rpartition('/')[2]}"}
    return {
        key: plain(each)
        for key, each in value.items()
        if not (key == "description" and isinstance(each, str)) and not key.startswith(("x-", "$"))
    }


def referred(value: Any, definitions: dict[str, Any], found: dict[str, Any]) -> None:
    """Add to `found` the definitions that a schema refers to, and those that these refer to."""
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, str) and each.startswith("#/$defs/"):
            name = each.rpartition("/")[2]
            if name not in found:
                found[name] = plain(definitions[name])
                referred(found[name], definitions, found)
        elif isinstance(each, dict | list):
            referred(each, definitions, found)


def main() -> None:
    folder = files(kubernetes_validate) / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    schema = plain(json.loads((folder / "job-batch-v1.json").read_text()))
    needed: dict[str, Any] = {}
    referred(schema, definitions, needed)
    said = f"Kubernetes {VERSION} (Apache-2.0), by tests/make_fixtures/kubernetes_job.py"
    whole = {"$comment": said, **schema, "$defs": dict(sorted(needed.items()))}
    TARGET.write_text(json.dumps(whole, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
