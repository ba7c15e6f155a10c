"""`without_sockets.py MODULE ARGUMENTS`: a command that ends as soon as Python opens a socket."""

import runpy
import sys


def refuse(event: str, _: tuple) -> None:
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
        sys.exit(f"error: {event}")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.addaudithook(refuse)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
