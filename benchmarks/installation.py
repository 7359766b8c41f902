"""What `pip install` brings to a project that imports the losses, and to one that trains."""

from __future__ import annotations

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv

from benchmarks.measure import Section, duration

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "t2g_jax")
_IMPORTS = 5

_IMPORT = """
import json, sys, time
start = time.process_time()  # other work on the machine does not count
import jax.numpy
jax_seconds, modules = time.process_time() - start, len(sys.modules)
import t2g_jax
seconds = time.process_time() - start
print(json.dumps([seconds, jax_seconds, len(sys.modules) - modules]))
"""
_PACKAGES = """
import importlib.metadata, json, os
sizes = {}
for package in importlib.metadata.distributions():
    files = map(package.locate_file, package.files or ())
    sizes[package.name] = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
print(json.dumps(sizes))
"""


def measure(*, small: bool = False) -> Section:
    """In environments that are made for it; if small, of the environment that runs this."""
    if small:
        rows, imported = [_row("this environment", sys.executable)], _imported(sys.executable)
    else:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for extra in ("", "[train]"):
                python = _install(pathlib.Path(folder) / f"environment{extra}", extra)
                rows.append(_row(f'`pip install "t2g_jax{extra}"`', python))
                if not extra:
                    imported = _imported(python)
    text = f"""
New environments, JAX for the CPU; sizes are those of the files, pip's own apart. {imported}
"""
    return Section("Installing", text, ["", "packages", "MB", "the largest"], rows)


def _install(folder: pathlib.Path, extra: str) -> str:
    """A new environment with this package, from a copy: building leaves files beside the source."""
    source = folder / "source"
    for name in _SOURCE:
        copy = shutil.copytree if (_ROOT / name).is_dir() else shutil.copy
        source.mkdir(parents=True, exist_ok=True)
        copy(_ROOT / name, source / name)
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{source}{extra}"], cwd=folder, check=True
    )
    return python


def _row(name: str, python: str) -> list[str]:
    sizes = _run(python, _PACKAGES)
    for tool in ("pip", "setuptools"):
        sizes.pop(tool, None)
    largest = sorted(sizes, key=sizes.get, reverse=True)[:4]
    named = ", ".join(f"{package} {sizes[package] / 1e6:.0f}" for package in largest)
    return [name, str(len(sizes)), f"{sum(sizes.values()) / 1e6:.0f}", named]


def _imported(python: str) -> str:
    """What the import takes, and what it loads."""
    _run(python, _IMPORT)  # compiles, and brings the files into memory
    seconds, jax_seconds, modules = zip(
        *(_run(python, _IMPORT) for _ in range(_IMPORTS)), strict=True
    )
    ours = statistics.median(a - b for a, b in zip(seconds, jax_seconds, strict=True))
    return (
        f"`import t2g_jax` loads {modules[0]} modules more than `import jax.numpy`. It takes "
        f"{duration(statistics.median(seconds))} of processor time, {duration(ours)} beside JAX's."
    )


def _run(python: str, program: str) -> list | dict:
    command = [python, "-I", "-c", program]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
