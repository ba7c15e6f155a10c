"""Folders that earlier versions of PEFT have written (`make_fixtures/peft_versions.py`)."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from make_fixtures.peft_versions import CASES, FOLDER
from peft_net import forward

import lora_jax as lj
import variants

NAMES = lj.names_from_patterns({r"(\w+\.(?:weight|bias))": "{0}"})


@pytest.mark.parametrize(
    ("version", "case"), [(version, case) for version, each in CASES.items() for case in each]
)
def test_outputs_are_those_of_that_version(version, case, x64):
    arrays = dict(np.load(FOLDER / "base.npz"))
    ids, params = arrays.pop("ids"), {name: jnp.asarray(x) for name, x in arrays.items()}
    loaded = lj.load_peft(FOLDER / version / case, variants.from_peft, NAMES, forward, params, ids)
    expected = np.load(FOLDER / version / "outputs.npz")[case]
    got = loaded.adapted.apply(*loaded[1:3], ids)
    np.testing.assert_allclose(got, expected, atol=1e-10, rtol=0)
    assert np.abs(expected - functools.partial(forward, params)(ids)).max() > 1e-3
