"""Compiled programs are kept on disk, so that a second start need not wait for the compiler."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax

VARIABLE = "T2G_COMPILATION_CACHE"
"""Environment variable: a folder, or "off"."""


def use_compilation_cache() -> pathlib.Path | None:
    """Turns JAX's persistent compilation cache on; returns its folder, None if it stays off.

    The folder is what `T2G_COMPILATION_CACHE` says, or `t2g_jax` among the user's caches, and in it
    one for each kind of processor: homes are shared between machines, and a program for one may not
    run on another. JAX's own settings (`JAX_COMPILATION_CACHE_DIR` and the like) win. A file in it
    that is damaged, or a folder that cannot be written to, costs a warning and a compilation. It
    stays off for a user who has no home.
    """
    chosen = os.environ.get(VARIABLE, "")
    set_already = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen.lower() == "off" or set_already is not None:
        return None
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = pathlib.Path(chosen or caches / "t2g_jax" / "jax").expanduser() / _processor()
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX leaves out what compiles in a second, which is most of what a small model needs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def _processor() -> str:
    """A name for processors that run the same programs."""
    about = [platform.machine(), platform.processor()]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        about += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(about).encode()).hexdigest()[:12]}"
