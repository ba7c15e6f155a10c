"""A Hub of one's own that takes uploads: what huggingface_hub asks for, over HTTP."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


@dataclasses.dataclass
class Hub:
    """What the Hub has, and what it was asked."""

    url: str = ""
    user: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "ada", "orgs": [{"name": "engines"}]}
    )
    """The answer of `whoami`."""
    visibility: dict[str, str] = dataclasses.field(default_factory=dict)
    """By the name of each repository."""
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    """The files of each repository that has a commit."""
    asked: list[str] = dataclasses.field(default_factory=list)
    refused: str = ""
    """A part of the paths whose requests are refused."""
    stored: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """Large files by SHA-256, before their commit."""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub with a user `ada` and no repositories."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self._path()
            if path == "api/whoami-v2":
                self._say(hub.user)
            elif (name := path.removeprefix("api/models/")) in hub.visibility:
                self._say({"id": name})
            else:
                self._say({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def do_POST(self) -> None:
            path = self._path()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}" and "validate" not in path:
                self._say({"error": "who are you?"}, 401)
            elif hub.refused and hub.refused in path:
                self._say({"error": "the storage is full"}, 403)
            elif path == "api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.visibility[name] = asked["visibility"]
                self._say({"url": f"{hub.url}/{name}"})
            elif path == "api/validate-yaml":
                self._say({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                self._say({"files": [_mode(each["path"]) for each in json.loads(body)["files"]]})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                self._say({"transfer": "basic", "objects": [_upload(hub, o) for o in objects]})
            elif path.endswith("/commit/main"):
                name = path.removeprefix("api/models/").removesuffix("/commit/main")
                lines = [json.loads(line) for line in body.splitlines()]
                hub.files[name] = dict(_committed(hub, lines))
                self._say({"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1"})

        def do_PUT(self) -> None:
            path = self._path()
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.stored[path.removeprefix("stored/")] = content
            self._say({})

        def _path(self) -> str:
            path = self.path.partition("?")[0].strip("/")
            hub.asked.append(path)
            return path

        def _say(self, content: Any, code: int = 200, headers: Any = ()) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            for key, value in {**dict(headers), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith(".safetensors")
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


def _upload(hub: Hub, each: dict[str, Any]) -> dict[str, Any]:
    return {**each, "actions": {"upload": {"href": f"{hub.url}/stored/{each['oid']}"}}}


def _committed(hub: Hub, lines: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            assert value["encoding"] == "base64"
            yield value["path"], base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            content = hub.stored[value["oid"]]
            assert hashlib.sha256(content).hexdigest() == value["oid"]
            yield value["path"], content
