"""What a Ray task does: run the command of a job in a process of its own.

Ray sends this function to other machines as it stands, so it uses nothing but Python itself.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Sequence

_TICK = 0.2  # seconds; between the ticks, Ray can raise KeyboardInterrupt here


def attend(line: Sequence[str], folder: str, log: str) -> tuple[int, int]:
    """Run a command that takes `--leash`, and return its process id and exit code.

    The command ends with this process, even if this process is killed. If the task is cancelled, or
    its machine asks it to end, the command gets SIGTERM and time to save its state. When the
    machine asked, the code is EX_TEMPFAIL, as of a command that saved, if it had nothing to save.

    Args:
      folder: the folder in which the command runs.
      log: the file to which its output is appended.
    """
    path, told, code = pathlib.Path(log), list[int](), None
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers = {
        # Ray's own handler ends this process, and how the command ended would not be known.
        signal.SIGTERM: lambda number, _: told.append(number),
        # A cancelled task gets SIGINT; a cluster that a shell started in its background ignores it.
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with path.open("ab") as output:
            process = subprocess.Popen(
                [*line, "--leash"],
                cwd=folder,
                stdin=subprocess.PIPE,  # end of file tells the command that this process has died
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=_TICK)
                if told:
                    process.terminate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    finally:
        for number, handler in before.items():  # None if Python did not install the handler
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return process.pid, os.EX_TEMPFAIL if told and code == -signal.SIGTERM else code
