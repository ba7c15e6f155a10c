"""What a client is told when a request is not answered, in the form of OpenAI's errors."""

import re
from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.setup.out_of_memory import is_out_of_memory
from lora_jax.serving.adapter_store import UnknownAdapterError
from lora_jax.serving.bank_arrays import NoMemoryError
from lora_jax.serving.slot_table import NoSlotFree

INVALID, SERVER = "invalid_request_error", "server_error"
FOLDERS = re.compile(r"(?<![^\s'\"(=])/[^'\":]*/")
"""The folders of an absolute path, which are not told to clients."""


class ApiError(Exception):
    """A request that is refused or fails.

    Args:
      status: of HTTP.
      message: one line for the client.
      param: the field of the request that is wrong, if it is one.
      code: a word for programs.
      headers: further headers of the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = SERVER if self.status >= 500 else INVALID
        param = None if self.param is None else _encodable(self.param)
        said = {"message": _encodable(self.message), "type": kind, "param": param}
        return {"error": {**said, "code": self.code}}


def _encodable(text: str) -> str:
    """A text with halves of surrogate pairs, which UTF-8 has not, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def wrong(param: str, message: str) -> ApiError:
    """The error of a field with a wrong value."""
    return ApiError(400, message, param=param, code="invalid_value")


def busy(waiting: int) -> ApiError:
    """The error of a request that finds the queue full."""
    return ApiError(
        429,
        f"the queue is full: {waiting} sequences are running or waiting; try again",
        code="queue_full",
        headers={"Retry-After": "1"},
    )


def unavailable(message: str, code: str) -> ApiError:
    """The error of a request that cannot be answered now, and may be later."""
    return ApiError(503, message, code=code, headers={"Retry-After": "1"})


def failed_step() -> ApiError:
    """The error of a request that the model has failed on."""
    return ApiError(500, "the model failed; the server's log says why", code="step_failed")


def unknown_model(name: str) -> ApiError:
    """The error of a model that is neither the base nor an adapter."""
    message = f"the model {name[:200]!r} does not exist; /v1/models lists those that do"
    return ApiError(404, message, param="model", code="model_not_found")


def one_line(error: BaseException) -> str:
    """An exception as a line of the log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def reason(error: Exception) -> str:
    """Why an adapter cannot be used, as an admin is told. Errors of ours are lines themselves."""
    return " ".join(str(error).split()) if isinstance(error, ValueError) else one_line(error)


def refusal(adapter: str | None, error: BaseException) -> ApiError:
    """What a client is told if its job cannot begin; what it need not know is logged."""
    what = "the base model" if adapter is None else f"the adapter '{adapter}'"
    match error:
        case ApiError():
            return error
        case NoSlotFree():
            return unavailable(f"no slot is free for {what}; try again", "no_slot")
        case UnknownAdapterError():
            return unknown_model(str(adapter))
        case _ if isinstance(error, NoMemoryError) or is_out_of_memory(error):
            logging.error("%s: %s", what, one_line(error))
            message = f"memory has no room for {what}; the server's log says more"
            return ApiError(503, message, code="no_memory")
    logging.error("%s: %s", what, one_line(error))
    message = f"{what} cannot be used; the server's log says why"
    if adapter is None or not isinstance(error, ValueError | OSError):
        return ApiError(500, message, code="adapter_unusable")
    if isinstance(error, ValueError):  # one line of ours, on its files
        message = f"{what} cannot be used: {FOLDERS.sub('', reason(error))}"
    return ApiError(503, message, code="adapter_unusable")
