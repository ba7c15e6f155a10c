"""JSON as the standard has it: what is read is what stands there, what is not is one line.

Equal configurations have equal digests, whatever the order of their keys.
"""

import hashlib
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from reordered import reordered

from lora_jax.files import json_text
from lora_jax.files.json_text import canonical, config_digest

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN | TEXTS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=8,
)


def refused(content):
    """The one line that a text is refused with."""
    with pytest.raises(ValueError, match=r"^a\.json") as error:
        json_text.loads(content, "a.json")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@settings(max_examples=60)
@given(VALUES, st.booleans(), st.booleans())
def test_what_was_written_is_read(value, ascii_only, marked):
    text = json.dumps(value, ensure_ascii=ascii_only)
    content = (b"\xef\xbb\xbf" if marked else b"") + text.encode()
    assert repr(json_text.loads(content, "a.json")) == repr(value)


@settings(max_examples=150)
@given(VALUES, st.binary(max_size=4), st.integers(0, 200), st.integers(0, 4))
def test_any_damage_is_read_as_the_standard_has_it_or_is_one_line(value, put, place, gone):
    whole = json.dumps(value).encode()
    place = min(place, len(whole))
    content = whole[:place] + put + whole[place + gone :]
    try:
        found = json_text.loads(content, "a.json")
    except ValueError as error:
        assert str(error).startswith("a.json")
        assert len(str(error).splitlines()) == 1
    else:  # an independent reading: Python's, which takes all that is JSON, and NaN besides
        assert repr(found) == repr(json.loads(content.decode("utf-8-sig")))
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("depth", [101, 990, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_no_depth_is_a_recursion(depth, closed):
    content = "[" * depth + ("]" * depth if closed else "")
    said = refused(content)
    assert "nested deeper than" in said or (not closed and "is not JSON" in said)
    wide = json.dumps([[[]]] * 300)  # as many brackets, side by side
    assert json_text.loads(wide, "a.json") == [[[]]] * 300
    deepest = "[" * json_text.DEPTH + '"[["' + "]" * json_text.DEPTH
    assert json_text.loads(deepest, "a.json") == json.loads(deepest)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[NaN]", "NaN is not a number in JSON"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 5000, "too many digits"),
        ('{"a": 1, "a": 2}', "the key 'a' twice, with different values"),
        ('{"a": 1, "a": true}', "the key 'a' twice"),
        ('{"a": {}, "a": {"b": 1}}', "the key 'a' twice"),
        (b'"\xff"', "is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ("[1,]", "is not JSON"),
        ("[1] [2]", "is not JSON"),
        ('"a\nb"', "is not JSON"),
        ("1_000", "is not JSON"),
    ],
)
def test_what_python_takes_or_raises_elsewhere_is_refused(content, said):
    assert said in refused(content)


@settings(max_examples=60)
@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_exact_numbers_keep_every_digit(number):
    found = json_text.loads(f"[{number:f}, {number:e}]", "x", exact=True)
    assert found == [number, number]
    assert type(found[1]) is (Decimal if "e" in f"{number:e}" else int)


@pytest.mark.parametrize("text", ["1e999", "1e9999999999999999999", "1e-9999999999999999999"])
def test_exact_numbers_are_those_of_floats(text):
    with pytest.raises(ValueError, match=f"x is not JSON: the number {text} is too"):
        json_text.loads(text, "x", exact=True)
    assert math.copysign(1, json_text.loads("-0.0", "x", exact=True)) == -1


def test_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert json_text.read(path) == [1]
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON object, got a list"):
        json_text.read_object(path)
    assert json_text.loads('{"a": 1, "b": null, "a": 1, "b": null}', "x") == {"a": 1, "b": None}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
configs = st.dictionaries(st.text(), json_values, max_size=5)


@settings(max_examples=50)
@given(configs, st.booleans())
def test_equal_configs_have_equal_digests(config, as_tuple):
    digest = config_digest(config)
    assert digest == config_digest(reordered(config, as_tuple))
    assert digest == config_digest(json.loads(canonical(config)))


def test_the_digest_is_of_this_text():
    text = '{"a":[1,2.5,true,null],"b":{"c":"\\u00e9","d":"Infinity"}}'
    config = {"b": {"d": math.inf, "c": "é"}, "a": (1, np.float64(2.5), True, None)}
    assert config_digest(config) == hashlib.sha256(text.encode()).hexdigest()
    assert len({config_digest({"a": value}) for value in (1, 1.0, True, "1", [1])}) == 5
