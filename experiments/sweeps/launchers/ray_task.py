"""What a Ray task does: run the command of a job in a process of its own.

Ray sends this function to other machines as it stands, so it uses nothing but Python itself.
"""

import contextlib
import pathlib
import subprocess
from collections.abc import Sequence

_TICK = 0.2  # seconds; between the ticks, Ray can raise KeyboardInterrupt here


def attend(line: Sequence[str], folder: str, log: str) -> tuple[int, int]:
    """Run a command that takes `--leash`, and return its process id and exit code.

    The command ends with this process, even if this process is killed. If the task is cancelled, or
    its machine asks it to end, the command gets SIGTERM and time to save its state.

    Args:
      folder: the folder in which the command runs.
      log: the file to which its output is appended.
    """
    path = pathlib.Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
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
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.pid, process.wait(timeout=_TICK)
    except BaseException:
        process.terminate()
        process.wait()
        raise
