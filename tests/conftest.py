"""Strict numerics for every test: no silent promotion, 8 simulated devices, float64 on demand."""

import contextlib
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Programs that several tests compile, in any process, are compiled once."""
    if (cache := getattr(config, "cache", None)) is None:
        return
    settings = {
        "jax_compilation_cache_dir": str(cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        "jax_compilation_cache_max_size": 2**32,  # with one, files are locked
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Each compiled program holds memory maps, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def quick_compilation():
    """Half the time, for tests of many small programs that each run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    """float64 for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def compilations():
    """`with compilations() as counted` lists the seconds of everything that XLA compiles."""

    @contextlib.contextmanager
    def count():
        counted = []

        def listen(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration" and listening:
                counted.append(duration)

        listening = True
        jax.monitoring.register_event_duration_secs_listener(listen)
        yield counted
        listening = False

    return count


@pytest.fixture
def standard_promotion():
    """For tests that run Optax's Adam, whose bias correction promotes the step count."""
    with jax.numpy_dtype_promotion("standard"):
        yield
