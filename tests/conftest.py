"""Eight CPU devices for every test, and quick compilation. Set before anything imports jax."""

import contextlib
import fcntl
import gc
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["T2G_COMPILATION_CACHE"] = "off"  # of the user, who has programs for one device
# Tests compile more than they compute: most of their time would go into LLVM's optimizations, and
# into MLIR's for fused loops (of jax 0.10, whose flags are known).
for _flag, _value in (
    ("--xla_force_host_platform_device_count", 8),
    ("--xla_backend_optimization_level", 0),
    *([("--xla_cpu_use_fusion_emitters", "false")] if version("jax").startswith("0.10.") else []),
):
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
gc.set_threshold(100_000, 50, 100)  # as the command does, and for its reason

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from t2g_jax import user_code  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class Precision:
    """A float type and how closely it reproduces the reference values."""

    dtype: type
    tolerance: float

    def cast(self, x) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(self.dtype) if np.issubdtype(x.dtype, np.floating) else x

    def assert_close(self, actual, desired) -> None:
        assert actual.dtype == self.dtype
        np.testing.assert_allclose(actual, desired, rtol=self.tolerance, atol=self.tolerance)


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """Runs a test in float32 to 1e-5, and in float64 to 1e-10."""
    if request.param == "float32":
        yield Precision(np.float32, 1e-5)
    else:
        with jax.enable_x64(True):
            yield Precision(np.float64, 1e-10)


@pytest.fixture(autouse=True)
def places_of_user_code(monkeypatch):
    """Where one test looks for modules and files is nothing to the next."""
    monkeypatch.setattr(user_code, "_folders", list(user_code._folders))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def gradient_of():
    """gradient_of(f, argnums=0): the compiled gradient of the sum of what f returns."""

    def gradient_of(function, argnums=0):
        return jax.jit(jax.grad(lambda *args: function(*args).sum(), argnums))

    return gradient_of


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """The reference values."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def one_device() -> str:
    """XLA_FLAGS for processes of their own with one device; else those of the tests."""
    return " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)


@pytest.fixture(scope="session")
def bare_python(root, tmp_path_factory):
    """bare_python(*words): Python where only `pip install t2g_jax` was, without an extra."""
    import bare_site

    site = bare_site.make(root, tmp_path_factory.mktemp("site"))

    def bare_python(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-S", *words],
            capture_output=True,
            text=True,
            cwd=site.parent,
            env=os.environ | {"PYTHONPATH": str(site)},
        )

    return bare_python


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    """The folder of compiled programs that tests share."""
    return _shared(tmp_path_factory) / "compiled"


@pytest.fixture(scope="session")
def compiled_once(programs):
    """A context in which what was compiled before comes from a cache on disk."""

    @contextlib.contextmanager
    def compiled_once():
        from jax.experimental.compilation_cache import compilation_cache

        settings = {  # here, and JAX's default
            "jax_compilation_cache_dir": (str(programs), None),
            "jax_persistent_cache_min_compile_time_secs": (0.1, 1.0),
        }

        def use(which):
            for name, values in settings.items():
                jax.config.update(name, values[which])
            compilation_cache.reset_cache()

        use(0)
        try:
            yield
        finally:
            use(1)

    return compiled_once


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, compiled_once):
    """A tiny run with all phases complete (see tests/support/tiny.py). To be read only."""
    import tiny

    folder = _shared(tmp_path_factory)
    with open(folder / "lock", "w") as lock, compiled_once():
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first of pytest's processes makes it
        return tiny.run(folder / "tiny_run")


@pytest.fixture(scope="session")
def tiny_context(tiny_run):
    """The parts that the phases of the tiny run share."""
    from t2g_jax.run.context import Context

    return Context.open(tiny_run.config, tiny_run.workdir)


def _shared(tmp_path_factory) -> Path:
    """A folder that all of pytest's processes share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
