import pytest

from lora_jax.messages import first_line, said


@pytest.mark.parametrize(
    "error, message, line",
    [
        (ValueError("one"), "one", "ValueError: one"),
        (ValueError("\n  one \ntwo"), "one ", "ValueError: one "),
        (ValueError(), "ValueError", "ValueError"),
        (OSError("\n"), "OSError", "OSError"),
        (KeyError("a" * 2000), "'" + "a" * 2000 + "'", "KeyError: '" + "a" * 989),
    ],
)
def test_any_error_has_a_line(error, message, line):
    assert (said(error), first_line(error)) == (message, line)
