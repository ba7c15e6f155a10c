"""A progress bar with the loss, the examples per second and the remaining time."""

import contextlib
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lora_jax.training import loop


@contextlib.contextmanager
def bar(label: str, steps: int) -> Iterator[loop.Progress]:
    """Show a bar of `steps` steps; give a function to call with step, loss and examples so far."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(label, total=steps, news="compiling")
        last = [time.perf_counter(), 0]

        def show(step: int, loss: float, examples: int) -> None:
            now = time.perf_counter()
            rate = (examples - last[1]) / max(now - last[0], 1e-9)
            last[:] = now, examples
            news = f"loss {loss:.3f}, {rate:.0f} examples/s"
            progress.update(task, completed=step, news=news)

        yield show
