"""The commands as an installed package has them: `lora-jax`, or `python -m lora_jax_experiments`.

In a wheel this package holds the folders `experiments` and `configs`; in a checkout they lie beside
it. Their files import one another by these two names. `main` makes the names known in its own
process alone, before those of other folders. So a program that imports lora_jax never meets them,
and may have an `experiments` and a `configs` of its own.
"""

import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run `lora-jax COMMAND --FLAG=...`, or list the commands."""
    sys.path.insert(0, str(folder()))
    runpy.run_module("experiments", run_name="__main__", alter_sys=True)


def folder() -> Path:
    """The folder that holds `experiments` and `configs`."""
    here = Path(__file__).resolve().parent
    return here if (here / "experiments").is_dir() else here.parent


def load_run(run: str | Path, **options: Any) -> Any:
    """A finished run as a function of texts, where lora-jax is installed from a wheel.

    From then on, `import experiments` and `import configs` are those of the package, too.

    Args:
      run: the folder of the run.
      options: as for `experiments.load_run`.
    """
    sys.path.insert(0, str(folder()))
    import experiments

    return experiments.load_run(run, **options)
