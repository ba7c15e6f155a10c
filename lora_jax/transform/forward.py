"""What a user's function takes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def refuse_taken(
    function: Callable[..., Any], args: tuple[Any, ...], taken: Mapping[str, Any]
) -> None:
    """Raise a ValueError for a keyword that `function(params, *args)` has, too, and would not get.

    Args:
      taken: the keywords of the caller that are not passed on, by name; None is not given.
    """
    names = [name for name, value in taken.items() if value is not None]
    if not names:
        return
    try:
        signature = inspect.signature(function)
        by_position = signature.bind_partial(None, *args).arguments
    except (TypeError, ValueError):  # Python cannot tell, or the call itself will fail
        return
    bound = function.keywords if isinstance(function, functools.partial) else {}
    free = signature.parameters.keys() - by_position.keys() - bound.keys()
    if own := [name for name in names if name in free]:
        raise ValueError(
            f"'{own[0]}' is a parameter of the adapted function, too, which would not get it: "
            "give it by position, or rename it there"
        )
