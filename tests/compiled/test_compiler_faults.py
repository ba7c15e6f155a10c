"""What the installed jaxlib computes in processes as users start them, and who adds which flag."""

import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest

from lora_jax.compiled import compiler_faults

PROGRAM = Path(__file__).parents[1] / "support" / "fused_products.py"
CURE = compiler_faults.CURE


@pytest.fixture(scope="module")
def errors():
    """{whether lora_jax is imported first: {pattern: {what: relative error}}}, of new processes."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    plain |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(PROGRAM.parent.parent)}
    started = {
        first: subprocess.Popen(
            [sys.executable, str(PROGRAM), *["first"] * first],
            env=plain,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (False, True)
    }
    return {first: json.loads(process.communicate()[0]) for first, process in started.items()}


def largest(errors, dtype):
    return max(max(e.values()) for pattern, e in errors.items() if pattern.endswith(dtype))


@pytest.mark.parametrize(("dtype", "digits"), [("float64", 1e-14), ("float32", 1e-6)])
def test_reduced_products_are_right_once_lora_jax_is_imported(errors, dtype, digits):
    assert largest(errors[True], dtype) < digits


def test_the_cure_is_for_just_the_versions_that_need_it(errors):
    wrong = largest(errors[False], "float64") > 1e-3
    listed = compiler_faults.is_faulty(version("jaxlib"))
    assert wrong == listed, (
        f"jaxlib {version('jaxlib')} is {'wrong' if wrong else 'right'} without the flag: change "
        "FAULTY in lora_jax/compiled/compiler_faults.py, which can go once it names no allowed "
        "version"
    )


def test_versions_in_order():
    right = ["0.10.0", "0.10.1", "0.9.2", "0.12.1", "0.12.0.2", "0.13.0", "1.0.0"]
    assert not any(map(compiler_faults.is_faulty, right))
    assert all(map(compiler_faults.is_faulty, ["0.10.2", "0.11.0", "0.12.0", "0.12.0.1"]))
    assert compiler_faults.is_faulty("0.12.0.1+local.build9")


@pytest.fixture
def cured(monkeypatch):
    """What `cure()` makes of XLA_FLAGS and says, for a version of jaxlib."""

    def run(flags, jaxlib="0.12.0.1", backend=False):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setattr(compiler_faults, "version", lambda name: jaxlib)
        monkeypatch.setattr(compiler_faults, "_backend_exists", lambda: backend)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            compiler_faults.cure()
        return os.environ["XLA_FLAGS"], [str(each.message) for each in said]

    return run


@pytest.mark.parametrize("flags", ["", "--xla_dump_to=there --xla_cpu_enable_fast_math=false"])
def test_the_flag_is_added_to_what_is_set(cured, flags):
    assert cured(flags) == (f"{flags} {CURE}".strip(), [])
    assert cured(flags, jaxlib="0.10.1") == (flags, [])
    assert cured(flags, jaxlib="0.13.0") == (flags, [])  # which may end at a flag it does not know


@pytest.mark.parametrize("value", ["-reduce", "individual_dot", "", "-reduce,-dot", "-reduce,+dot"])
def test_what_a_user_set_stays(cured, value):
    flags = f"{compiler_faults.FLAG}={value}"
    assert cured(flags) == (flags, [])


@pytest.mark.parametrize("value", ["reduce", "-individual_dot", "dot", "+dot", "+reduce"])
def test_a_user_who_switches_the_fault_on_is_told(cured, value):
    flags = f"{CURE} {compiler_faults.FLAG}={value}"
    kept, (said,) = cured(flags)
    assert kept == flags
    assert "XLA_FLAGS switches them on" in said and CURE in said


def test_a_process_that_began_without_is_told(cured):
    flags, (said,) = cured("", backend=True)
    assert flags == ""
    assert "JAX was used before" in said and f"XLA_FLAGS={CURE}" in said
    assert cured("", "0.10.1", backend=True) == ("", [])


def test_a_file_of_flags_is_left_alone(cured, tmp_path):
    """XLA takes the whole value for the file's name: what is appended would end the process."""
    path = tmp_path / "flags"
    path.write_text("--xla_cpu_enable_fast_math=false")
    flags, (said,) = cured(str(path))
    assert flags == str(path)
    assert f"the file {path} leaves them on" in said
    path.write_text(CURE)
    assert cured(str(path)) == (str(path), [])
