"""Compiled programs are kept where they should be, and a damaged one breaks nothing."""

import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from t2g_jax.runtime.compilation_cache import VARIABLE, use_compilation_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """JAX without a cache, as when a program starts; and as it was after the test."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = use_compilation_cache()
    assert folder.parent == tmp_path / "t2g_jax" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert use_compilation_cache().parent == tmp_path / "mine"


def test_without_a_home_of_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert use_compilation_cache().is_relative_to(tmp_path / ".cache" / "t2g_jax")


def test_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_settings_of_jax_win(monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def compiled_anew():
    """A function that this process has not compiled yet, though its program is always the same."""

    def program(x):
        return jnp.sin(x) * 2 + 1

    return jax.jit(program)(np.arange(3.0, dtype=np.float32))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_compiled_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    folder = use_compilation_cache()
    expected = compiled_anew()
    entries = [path for path in folder.iterdir() if path.name.startswith("jit_program")]
    assert entries
    for path in entries:
        path.write_bytes(damaged(path, damage))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(compiled_anew(), expected)
    assert any("persistent compilation cache" in str(warning.message) for warning in caught)


def damaged(path: pathlib.Path, damage: str) -> bytes:
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    return bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])


def test_a_folder_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert compiled_anew()[0] == 1


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def no_entry(*_):
        raise KeyError("no such user")

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
