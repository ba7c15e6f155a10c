"""One file for each value of `--suite`; `AGAINST` says which values `--against` may have.

`run(plan)` measures, and yields what it has found, one `results.Measured` after the other.
"""

import importlib
import pkgutil
from typing import Any

from lora_jax.suggest import require_known


def suite_of(name: str) -> Any:
    """The module of a suite.

    Raises:
      ValueError: there is no such suite.
    """
    known = [each.name for each in pkgutil.iter_modules(__path__)]
    require_known(name, known, f"--suite={name}: no such suite")
    return importlib.import_module(f"{__name__}.{name}")
