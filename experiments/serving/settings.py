"""What a server is started with, apart from its model and adapters."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits and sizes, each a flag of `experiments.serve` with the same name.

    Args:
      lanes: sequences that are computed at a time.
      queue: sequences that may wait for a lane; more are refused with 429.
      tokens: of a prompt and what follows it, at most.
      max_body: bytes of a request's body, at most.
      time_limit: seconds that a request may take, its wait included.
      drain_seconds: how long requests may still run after SIGTERM.
      token: the bearer token of the admin routes; None switches them off.
    """

    lanes: int = 8
    queue: int = 64
    tokens: int = 2048
    max_body: int = 2**20
    time_limit: float = 300.0
    drain_seconds: float = 30.0
    token: str | None = None


@dataclasses.dataclass(frozen=True)
class Holding:
    """How many adapters are held, and where.

    Args:
      capacity: slots of the bank.
      max_rank: the highest rank of an adapter.
      host_bytes: of adapters in host memory beside those in slots, at most. A request that
        waits for a slot keeps its adapter besides.
    """

    capacity: int = 16
    max_rank: int = 32
    host_bytes: int = 2**30
