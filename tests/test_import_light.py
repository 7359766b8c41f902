"""The pure functions come without the libraries that only the rest of the package needs."""

import os
import subprocess
import sys

HEAVY = ("flax", "orbax", "transformers", "pydantic", "tensorflow_datasets", "tensorflow", "grain")


def test_importing_the_package_imports_no_framework(root):
    program = "import sys, t2g_jax; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    imported = result.stdout.split()
    assert "jax" in imported
    assert not set(HEAVY) & set(imported)


def test_everything_exported_exists():
    import t2g_jax
    from t2g_jax import losses, spans

    for module in (t2g_jax, losses, spans):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert t2g_jax.__version__ == "0.1.0"
