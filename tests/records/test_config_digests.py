"""Equal configurations have equal digests, whatever the order of their keys."""

import hashlib
import json
import math

import numpy as np
from hypothesis import given, settings, strategies as st
from reordered import reordered

from lora_jax.files.json_text import canonical, config_digest

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


@given(configs, configs)
def test_different_configs_have_different_digests(a, b):
    as_text = [repr(reordered(reordered(sorted_keys(c), False), False)) for c in (a, b)]
    assert (config_digest(a) == config_digest(b)) == (as_text[0] == as_text[1])


def sorted_keys(value):
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def test_the_digest_is_of_this_text():
    text = '{"a":[1,2.5,true,null],"b":{"c":"\\u00e9","d":"Infinity"}}'
    config = {"b": {"d": math.inf, "c": "é"}, "a": (1, np.float64(2.5), True, None)}
    assert config_digest(config) == hashlib.sha256(text.encode()).hexdigest()
    assert len({config_digest({"a": value}) for value in (1, 1.0, True, "1", [1])}) == 5
