"""What is refused, in one line."""

import pytest


def refuses(message, call, *args, **kwargs):
    """What a call says, in one line with `message`, that is refused what it is given."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
