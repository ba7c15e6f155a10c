r"""Send requests of many clients to a server, and say how fast the answers come.

    python -m experiments.serving.load --url=http://127.0.0.1:8000 --models=a,b --clients=8

Each client asks for one text after the other, of the models in turn; no text ends before it has
--tokens. Nothing is needed but the standard library.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIMEOUT = 600.0
"""Seconds for an answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one request got: tokens, and after how many seconds the first and the last came."""

    tokens: int
    first: float
    last: float


@dataclasses.dataclass(frozen=True)
class Load:
    """What a server has done for all clients together.

    Args:
      answers: of all requests.
      seconds: from the first request to the end of the last answer.
    """

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(each.tokens for each in self.answers) / self.seconds

    def first_token(self, share: float) -> float:
        """Within how many seconds this share of all requests had its first token."""
        waits = sorted(each.first for each in self.answers)
        return waits[min(len(waits) - 1, int(share * len(waits)))]


def ask(url: str, model: str, prompt: str, tokens: int, seed: int) -> Answer:
    """The answer to one request, as a stream.

    Raises:
      ValueError: the server refuses it, or the stream ends with an error.
    """
    content = {"model": model, "prompt": prompt, "max_tokens": tokens, "seed": seed}
    content |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    begun, first, counted = time.perf_counter(), 0.0, 0
    where = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(where, timeout=TIMEOUT)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(content), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{model}: {answer.status}: {answer.read(500).decode()}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise ValueError(f"{model}: {event['error']['message']}")
            first = first or time.perf_counter() - begun
            counted = event.get("usage", {}).get("completion_tokens", counted)
    return Answer(counted, first, time.perf_counter() - begun)


def measure(
    url: str, models: Sequence[str], clients: int, requests: int, prompt: str, tokens: int
) -> Load:
    """Let some clients ask at once, until all requests are answered.

    Args:
      models: asked for in turn.
      requests: of all clients together.
      tokens: of each answer.
    """
    names = [models[number % len(models)] for number in range(requests)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        work = [
            pool.submit(ask, url, name, prompt, tokens, seed) for seed, name in enumerate(names)
        ]
        answers = tuple(each.result() for each in work)
    return Load(answers, time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--models", required=True, help="asked for in turn, such as a,b")
    parser.add_argument("--clients", type=int, default=8, help="requests at a time")
    parser.add_argument("--requests", type=int, default=32, help="in all")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    given = vars(parser.parse_args())
    try:
        _check(given)
        found = measure(**{**given, "models": given["models"].split(",")})
    except ValueError as error:
        sys.exit(f"error: {error}")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or error or type(error).__name__
        sys.exit(f"error: --url={given['url']}: {why}")
    half, most = (found.first_token(share) for share in (0.5, 0.95))
    print(
        f"{found.tokens_per_second:.1f} tokens/s; first token within {half:.3f} s for half of the "
        f"requests, within {most:.3f} s for 95%"
    )


def _check(given: dict[str, Any]) -> None:
    """Raise a ValueError, which names the flag, for one that cannot be."""
    if not re.fullmatch(r"http://[^/]+/?", given["url"]):
        raise ValueError(f"--url={given['url']}: expected http://HOST:PORT")
    if not all(given["models"].split(",")):
        raise ValueError(f"--models={given['models']} has an empty entry")
    for name in ("clients", "requests", "tokens"):
        if given[name] < 1:
            raise ValueError(f"--{name}={given[name]}: expected 1 or more")


if __name__ == "__main__":
    main()
