"""Strict numerics for every test: no silent promotion, 8 simulated devices, float64 on demand."""

# ruff: noqa: E402

import contextlib
import ctypes
import gc
import os
from importlib.metadata import version
from pathlib import Path

# Before jax is imported, and for all processes that tests start. Small programs take far longer to
# compile than to run: they are hardly optimised (`full_optimization` is for tests that look at
# what XLA makes of a program, or run it as users do). Each flag halves the time or better.
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
FULL_OPTIMIZATION = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # unknown, and fatal, later on
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
    FULL_OPTIMIZATION["xla_cpu_use_fusion_emitters"] = True

given = os.environ.get("XLA_FLAGS", "")
added = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of torch, beside which `make parity` runs: several threads mostly wait for each other, and what
# it compiles runs once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTORCH_JIT", "0")

import hypothesis
import jax
import pytest
from jax._src import compiler, lru_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# How long an example takes says more of the machine, and of what compiles, than of the code.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


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
    # What is put there would read all that is there, under that lock: a thousand files.
    lru_cache.LRUCache._evict_if_needed = lambda *_, **__: None
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_addoption(parser):
    def commit(text):
        return int(text, 16)

    says = "run one test in four of each file, by the commit's hash"
    parser.addoption("--part", metavar="COMMIT", type=commit, help=says)


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Tests of minutes come first: begun last, one of them is waited for alone.

    A part has none of them. Of each file it has every fourth test, one at least; the hash of the
    commit says which is the first.
    """
    if (commit := config.getoption("part")) is not None:
        files = {}
        for item in items:
            if item.get_closest_marker("minutes") is None:
                files.setdefault(item.path, []).append(item)
        items[:] = [
            item
            for tests in files.values()
            for item in tests[commit % 4 :: 4] or [tests[commit % len(tests)]]
        ]
    items.sort(key=lambda item: item.get_closest_marker("minutes") is None)


def pytest_collection_finish():
    """What was imported stays; the collector leaves it alone, and runs seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Each compiled program holds a megabyte, and memory maps, of which Linux gives 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 6_000:
        jax.clear_caches()
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory otherwise
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def full_optimization(monkeypatch):
    """Programs are compiled as users compile them."""
    true_options = compiler.get_compile_options

    def get_compile_options(*args, env_options_overrides=None, **options):
        overrides = FULL_OPTIMIZATION | (env_options_overrides or {})
        return true_options(*args, env_options_overrides=overrides, **options)

    monkeypatch.setattr(compiler, "get_compile_options", get_compile_options)
    # It says nothing to a CPU, and programs that were compiled with another are not those in use.
    jax.config.update("jax_xla_profile_version", 1)
    yield
    jax.config.update("jax_xla_profile_version", 0)


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
        jax.jit(lambda x: x + len(counted))(0)  # JAX may call the event otherwise one day
        assert counted, "JAX no longer says when it compiles"
        counted.clear()
        yield counted
        listening = False

    return count


@pytest.fixture
def standard_promotion():
    """For tests that run Optax's Adam, whose bias correction promotes the step count."""
    with jax.numpy_dtype_promotion("standard"):
        yield
