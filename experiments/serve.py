r"""Serve many adapters of one base over HTTP, as OpenAI's clients ask for them.

    python -m experiments.serve --model=smollm2 --adapters=runs
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \
        -d '{"model": "my_run", "messages": [{"role": "user", "content": "Hello"}]}'

--adapters is a folder with adapters: folders of finished runs, of `lj.save_adapter` with a config,
and of Hugging Face PEFT. A request's `model` is the name of such a folder, or that of the base.
Adapters are read when they are first asked for, and the least recently used make room; requests of
different adapters are computed together. The header X-Adapter-Digest of an answer says which
version has computed it: it is the sha256 of the lines of `sha256sum` for the adapter's files, its
config first, or for the base, that of the file of its weights.

Each weight that any adapter adapts, and each parameter that any trains in full, takes memory for
--capacity adapters and one more: an adapter that trains the whole model takes that of the model as
many times. One that memory has no room for is refused when it is asked for.

    GET  /v1/models                      the base and the adapters
    POST /v1/completions                 as at OpenAI, with streams; also top_k, stop_token_ids
    POST /v1/chat/completions            and ignore_eos
    POST /admin/adapters/NAME/load       with the bearer token of --admin_token_file; also
                                         .../unload and .../reload, after a folder has changed
    POST /v1/classify                    of encoders, with --labels: {"model": "my_run", "input":
                                         a text, or a list of texts and of pairs of texts}
    GET  /health                         200 when ready, 503 while it starts or ends
    GET  /metrics                        for Prometheus

Fields that are not supported are refused by name. Too large a body gets 413, a prompt that leaves
too few of --tokens 422, and so do more prompts than --lanes and --queue hold, a full queue 429, and
a request that takes too long 503. A client that goes frees its lane. SIGTERM ends the server: what
runs has --drain_seconds.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.serving import base_model
from experiments.serving.adapter_folder import AdapterFolder
from experiments.setup.devices import announce
from lora_jax.messages import count

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "The base model: minilm, smollm2, a folder or .gguf file, or org/name on the Hub.",
)
_ADAPTERS = flags.DEFINE_string("adapters", None, "The folder with the folders of adapters.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "The address to listen at. 0.0.0.0 listens on every network."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "The port. 0 takes any free one.", lower_bound=0, upper_bound=65535
)
_LABELS = flags.DEFINE_list(
    "labels",
    None,
    "The classes of an encoder, in the order of the adapters' heads. An encoder needs them.",
)
_POOL = flags.DEFINE_enum(
    "pool",
    "mean",
    ["mean", "cls"],
    "What the head of an encoder reads: the mean of all tokens, or the first token.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "The precision of the base's weights, as in the runs' configs.",
)
_LANES = flags.DEFINE_integer(
    "lanes", 8, "How many sequences are computed at a time.", lower_bound=1
)
_QUEUE = flags.DEFINE_integer("queue", 64, "How many sequences may wait for a lane.", lower_bound=0)
_TOKENS = flags.DEFINE_integer(
    "tokens",
    None,
    "The most tokens of a prompt and its continuation. The default is 2048, or the model's most.",
    lower_bound=2,
)
_CAPACITY = flags.DEFINE_integer(
    "capacity", 16, "How many adapters the device holds.", lower_bound=1
)
_MAX_RANK = flags.DEFINE_integer(
    "max_rank", 32, "The highest rank that an adapter may have.", lower_bound=1
)
_HOST_MEGABYTES = flags.DEFINE_integer(
    "host_megabytes",
    1024,
    "How many MiB of host memory hold the adapters that are not on the device.",
    lower_bound=0,
)
_MAX_BODY = flags.DEFINE_integer(
    "max_body", 2**20, "The most bytes of a request's body.", lower_bound=1
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit",
    300.0,
    "The most seconds that a request may take, its wait included.",
    lower_bound=0.1,
)
_DRAIN_SECONDS = flags.DEFINE_float(
    "drain_seconds", 30.0, "How many seconds running requests have after SIGTERM.", lower_bound=0.0
)
_ADMIN_TOKEN_FILE = flags.DEFINE_string(
    "admin_token_file",
    None,
    "A file with the token of the admin routes. By default, these routes are off.",
)


SHORTEST = 16
"""The fewest characters of a token."""
EXTRA = ("starlette", "uvicorn", "pydantic", "prometheus_client")


def serve() -> None:
    try:
        from experiments.serving import run_server  # it needs an extra
        from experiments.serving.state import Settings
    except ImportError as error:
        if error.name not in EXTRA:
            raise
        raise ValueError(
            'serving needs packages that are not installed; run: pip install "lora-jax[serve]"'
        ) from None
    given, dtype = str(_MODEL.value), str(_DTYPE.value)
    folder, name = AdapterFolder(Path(str(_ADAPTERS.value))), base_model.model_id(given)
    load = _loader(given, dtype)
    most = base_model.most_tokens(given)
    tokens = min(2048, most) if _TOKENS.value is None else _TOKENS.value
    if tokens > most:
        raise ValueError(f"--tokens={tokens}: the model takes at most {most}")
    settings = Settings(
        lanes=_LANES.value,
        queue=_QUEUE.value,
        tokens=tokens,
        max_body=_MAX_BODY.value,
        time_limit=_TIME_LIMIT.value,
        drain_seconds=_DRAIN_SECONDS.value,
        token=_token(_ADMIN_TOKEN_FILE.value),
        capacity=_CAPACITY.value,
        max_rank=_MAX_RANK.value,
        host_bytes=_HOST_MEGABYTES.value * 2**20,
    )
    state = run_server.make_state(name, folder, settings, load)
    if name in (names := folder.names()):
        raise ValueError(f"--adapters={folder.root}: '{name}' is the name of the base")
    listening = run_server.bind(str(_HOST.value), _PORT.value)
    announce()
    print(f"loading {name} with {count(len(names), 'adapter')} ...", flush=True)
    run_server.serve(state, listening)


def _loader(given: str, dtype: str) -> Callable[[], base_model.BaseModel]:
    """What loads the base, with the head that the flags describe if it is an encoder."""
    labels = _LABELS.value
    if base_model.is_decoder(given):
        if labels:
            raise ValueError(
                f"--labels goes with an encoder, and --model={given} is a language model"
            )
        cli.refuse_ignored((_POOL,), f"--model={given} is a language model")
        return functools.partial(base_model.load_language_model, given, dtype)
    if not labels or len({*labels}) < max(2, len(labels)) or not all(labels):
        raise ValueError(
            f"--model={given} is an encoder: name the classes of its adapters in their order, two "
            "or more, such as --labels=negative,positive"
        )
    return functools.partial(base_model.load_encoder, given, dtype, labels, str(_POOL.value))


def _token(path: str | None) -> str | None:
    """The token in a file."""
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not text in UTF-8"
        raise ValueError(f"--admin_token_file={path}: {why}") from None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"--admin_token_file={path}: expected a token of {SHORTEST} or more printable ASCII "
            "characters; make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "adapters"])
    cli.main(serve)
