"""A configuration's values in another order, which changes nothing that they say."""


def reordered(value, as_tuple):
    """The same value with keys in the opposite order and, maybe, tuples for lists."""
    if isinstance(value, dict):
        return {key: reordered(item, as_tuple) for key, item in reversed(value.items())}
    if isinstance(value, list):
        items = [reordered(item, as_tuple) for item in value]
        return tuple(items) if as_tuple else items
    return value
