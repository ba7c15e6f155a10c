"""Exchange of values between the processes that train one run."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def said_by_all(value: Any) -> list[Any]:
    """Give every process the JSON values of all processes, in order; all must call this."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    rows = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
