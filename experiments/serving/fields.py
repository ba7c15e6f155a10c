"""The fields of a request's JSON object, read strictly: what is wrong is named."""

from typing import Any

from experiments.serving.errors import ApiError, wrong
from lora_jax.files import json_text
from lora_jax.suggest import nearest

LARGEST = 2**63 - 1
LONGEST = 100
"""The most characters of a path in messages."""


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
      ApiError: 400, if it is none, or a text in it, which is named, has half a surrogate pair.
    """
    try:
        content = json_text.loads(body, "the body")
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    if b"\\u" in body:  # nothing else can give a text that is none
        _require_texts(content)
    return content


def _require_texts(content: dict[str, Any]) -> None:
    """Refuse a text or a name, at any depth, that UTF-8 cannot encode."""
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        where, value = left.pop()
        match value:
            case str():
                if any("\ud800" <= each <= "\udfff" for each in value):
                    raise wrong(where, f"'{where}' has half of a surrogate pair, which is no text")
            case dict():
                for name, each in value.items():
                    path = f"{where}.{name}"[:LONGEST] if where else name[:LONGEST]
                    left += [(path, each), (path, name)]
            case list():
                left += [(f"{where}[{number}]", each) for number, each in enumerate(value)]


class Fields:
    """Takes the fields of an object one by one. A field of null counts as missing.

    Args:
      content: the object.
      where: what comes before a field's name in messages, such as `messages[0].`.
    """

    def __init__(self, content: dict[str, Any], where: str = ""):
        self._left = {name: value for name, value in content.items() if value is not None}
        self._known: list[str] = []
        self.where = where

    def take(self, name: str) -> Any:
        """The value of a field, or None."""
        self._known.append(name)
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        return self._of(name, str, "a text")

    def flag(self, name: str) -> bool:
        return bool(self._of(name, bool, "true or false"))

    def integer(self, name: str, least: int, most: int = LARGEST) -> int | None:
        """A whole number from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            upper = f"from {least} to {most}" if most < LARGEST else f"of {least} or more"
            raise self.wrong(name, f"must be a whole number {upper}")
        return value

    def number(self, name: str, least: float, most: float, usual: float) -> float:
        """A number from `least` to `most`; `usual` if it is missing."""
        value = self.take(name)
        if value is None:
            return usual
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not least <= value <= most:
            raise self.wrong(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text, or a list of at most `most` texts, none of them empty."""
        value = self.take(name)
        each = [value] if isinstance(value, str) else value or []
        good = isinstance(each, list) and all(isinstance(x, str) and x for x in each)
        if not good or len(each) > most:
            raise self.wrong(name, f"must be a text or a list of at most {most}, none empty")
        return tuple(each)

    def integers(self, name: str, most: int) -> tuple[int, ...]:
        """A list of at most `most` whole numbers of 0 or more."""
        value = self.take(name)
        each = [] if value is None else value
        if not is_tokens(each) or len(each) > most:
            raise self.wrong(name, f"must be a list of at most {most} whole numbers")
        return tuple(each)

    def object(self, name: str) -> "Fields":
        """The fields of an object inside; those of an empty one if it is missing."""
        return Fields(self._of(name, dict, "an object") or {}, f"{self.where}{name}.")

    def done(self, neutral: dict[str, tuple[Any, ...]], ignored: tuple[str, ...] = ()) -> None:
        """Refuse what is left.

        Args:
          neutral: values of fields that are not supported, with which they change nothing.
          ignored: fields that change no answer, whatever their value.

        Raises:
          ApiError: 400, which names the first field.
        """
        for name, value in self._left.items():
            if name in ignored or any(_same(value, each) for each in neutral.get(name, ())):
                continue
            if name in neutral:
                only = " or ".join(repr(each) for each in neutral[name])
                hint = f"; leave it out, or give {only}" if only else "; leave it out"
                raise ApiError(
                    400,
                    f"'{self.where}{name}' is not supported{hint}",
                    param=f"{self.where}{name}",
                    code="unsupported_parameter",
                )
            known = [*self._known, *neutral, *ignored]
            raise ApiError(
                400,
                f"'{self.where}{name[:100]}' is unknown; nearest: {nearest(name[:100], known)}",
                param=f"{self.where}{name[:100]}",
                code="unknown_parameter",
            )

    def wrong(self, name: str, message: str) -> ApiError:
        return wrong(f"{self.where}{name}", f"'{self.where}{name}' {message}")

    def _of(self, name: str, kind: type, said: str) -> Any:
        value = self.take(name)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(name, f"must be {said}")
        return value


def is_tokens(value: Any) -> bool:
    """Whether a value is a list of whole numbers of 0 or more."""
    return isinstance(value, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**31 for x in value
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal: 1 is 1.0, but not true."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
