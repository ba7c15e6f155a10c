"""A Hub of one's own: what huggingface_hub asks for when it downloads, from folders, over HTTP."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub import constants

COMMIT = hashlib.sha1(b"a commit").hexdigest()


@contextlib.contextmanager
def serving(repositories: Mapping[str, Path | str]) -> Iterator[tuple[str, list[str]]]:
    """Give the address of a Hub with these repositories, and a list of what it has been asked.

    Args:
      repositories: a folder by `user/name`, or the `X-Error-Code` that the Hub answers with.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            asked.append(f"{self.command} {path}")
            name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            found = repositories.get(name, "RepoNotFound")
            if isinstance(found, str):
                self._answer(403 if found == "GatedRepo" else 401, b"", {"X-Error-Code": found})
                return
            rest = path.partition(name)[2].strip("/")
            revision = re.match(r"(?:revision|tree|resolve)/([^/]+)", rest)
            if revision and revision[1] not in ("main", "v1", COMMIT):
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            if path.startswith("api/"):
                files = sorted(each.name for each in found.iterdir())
                if rest.startswith("tree/"):
                    said = [_entry(found / each) for each in files]
                else:
                    siblings = [{"rfilename": each} for each in files]
                    said = {"id": name, "sha": COMMIT, "siblings": siblings}
                self._answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
                return
            file = found / rest.split("/", 2)[2]
            if not file.is_file():
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            etag = f'"{_digest(file)}"'
            self._answer(200, file.read_bytes(), {"ETag": etag, "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def _answer(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reach(monkeypatch: Any, address: str, cache: Path) -> None:
    """Have this process ask the Hub at an address, and keep files in a cache of its own."""
    url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def _entry(file: Path) -> dict[str, object]:
    return {
        "type": "file",
        "path": file.name,
        "size": file.stat().st_size,
        "oid": _digest(file),
    }


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
