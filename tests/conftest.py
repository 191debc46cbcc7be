"""What holds in every test: float64, strict promotion, warnings as errors, four CPU devices, shapes checked."""

import gc
import importlib.metadata
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

# Read once, when jax and matplotlib are first imported; what is already set wins (JAX_PLATFORMS=cuda for -m gpu).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that wait for the next small factorisation took 7 % of all processor time, from the other workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_FLAGS = ["--xla_force_host_platform_device_count=4"]
# Most of the time of the tests is compilation. Unoptimised it takes about a third (measured: 4.3 s to 1.6 s for a JKO
# flow); small sizes run as fast, millions of numbers up to five times slower. Unknown flags end the process, and
# jaxlib 0.12 has lost the second one.
if os.environ["JAX_PLATFORMS"] == "cpu":
    _FLAGS.append("--xla_backend_optimization_level=0")
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _FLAGS:
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

import jax
import jaxtyping
import pytest
from hypothesis import settings

# Programs kept by JAX's caches are many objects that live on; looking through them more rarely saves some percent.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

# A shell starts what runs in its background with Ctrl-C ignored, which processes hand on; the tests of Ctrl-C need it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set on the configuration, not through JAX_* variables, so that the processes which a test starts begin as a user's do.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Every annotation of the library is checked at run time; THALWEG_NO_TYPECHECK=1 turns that off, to time or to debug.
if os.environ.get("THALWEG_NO_TYPECHECK") != "1":
    jaxtyping.install_import_hook("thalweg", "beartype.beartype")

# The same examples in every run: a failure is then the change's. Compiling makes the first example slow: no deadline.
settings.register_profile("thalweg", derandomize=True, deadline=None, database=None, max_examples=25, print_blob=True)
settings.load_profile("thalweg")


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """JAX's own promotion rules, for a test that calls a third party which breaks under the strict ones.

    Tried with diffrax 0.7.2, optimistix 0.1.0, lineax 0.1.1, optax 0.2.8: in float64 the diffrax solvers (explicit and
    implicit, fixed and adaptive), the optimistix minimisers, root finders and least-squares solvers, and the lineax
    solvers all run under strict promotion. What breaks is the bias correction of `optax.adam` and its relatives
    (float ** int32); and, with x64 on, diffrax for a float32 state when times are Python numbers: give it times of the
    state's dtype instead of this fixture.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_report_header() -> str:
    """Which jax, and on what: the same suite runs with several."""
    return f"jax {jax.__version__} on {jax.device_count()} {jax.default_backend()} devices"


# Each compiled function holds some memory maps of the process, of which Linux allows 65,530: past that the compiler
# crashes. Looked at now and then, since to count them takes some milliseconds.
_MOST_MAPS, _TESTS_BETWEEN_LOOKS = 40_000, 20
_tests_since_look = 0


@pytest.fixture(autouse=True)
def _compiled_code_fits_the_process() -> Iterator[None]:
    """Forget compiled functions before the process runs out of memory maps."""
    global _tests_since_look
    yield
    _tests_since_look += 1
    if _tests_since_look < _TESTS_BETWEEN_LOOKS:
        return
    _tests_since_look = 0
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
