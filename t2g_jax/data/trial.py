"""A tokenizer from elsewhere is tried in a process of its own before it is used in this one.

Its files can name a text that they never finish splitting, and its chat template is a program. What
does not end there, or takes all memory, is killed; what ends in an error has the same error here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError, reason

CPU_SECONDS = 60
"""The largest published tokenizers take five, most of them for imports."""
WALL_SECONDS = 600
"""For a machine that is busy with something else."""
MEMORY_BYTES = 8 * 2**30

_PROGRAM = f"""
import json, resource, sys
for what, most in (
    (resource.RLIMIT_CPU, {CPU_SECONDS}),
    (resource.RLIMIT_DATA, {MEMORY_BYTES}),
    (resource.RLIMIT_CORE, 0),
):
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
from t2g_jax.data.tokenizer import ChatTokenizer
ChatTokenizer.load(sys.argv[1], template_options=json.loads(sys.argv[2])).next_turn("", ended=True)
"""
_FILES = ("*token*", "*.jinja", "vocab*", "merges.txt", "chat_template*", "generation_config.json")


def require_bounded(folder: Path, options: Mapping[str, Any] | None = None) -> None:
    """Loads the tokenizer of a folder and renders a conversation, elsewhere and within bounds.

    Args:
      options: of its template, see `ChatTokenizer`.

    Raises:
      T2GError: that did not end in a minute of computing, or took more than 8 GiB. Of any other
        error nothing is said.
    """
    _require(folder, _fingerprint(folder), _written(options))


def load(folder: Path, options: Mapping[str, Any] | None = None) -> ChatTokenizer:
    """The tokenizer of a folder from elsewhere.

    Args:
      options: of its template, see `ChatTokenizer`.

    Raises:
      T2GError: it has none that can be used.
    """
    require_bounded(folder, options)
    try:
        return ChatTokenizer.load(folder, template_options=options)
    except Exception as error:  # of many kinds, from several libraries
        raise T2GError(
            f"the tokenizer in {folder} cannot be used: {reason(error)[:300]}"
        ) from error


def know(folder: Path, options: Mapping[str, Any] | None = None) -> None:
    """Takes the tokenizer of a folder for tried, as this process made it."""
    _tried.add((_fingerprint(folder), _written(options)))


@functools.cache
def _require(folder: Path, contents: str, options: str) -> None:
    if (contents, options) in _tried:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder), options],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
            | {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _endless(folder) from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _endless(folder)
    if b"MemoryError" in done.stderr or done.returncode < 0:
        raise T2GError(
            f"the tokenizer in {folder} takes more than {MEMORY_BYTES >> 30} GiB to read or to "
            "render a conversation; its files are damaged or hostile: fetch them from elsewhere"
        )
    _tried.add((contents, options))


_tried: set[tuple[str, str]] = set()


def _written(options: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(options or {}), sort_keys=True)


def _endless(folder: Path) -> T2GError:
    return T2GError(
        f"the tokenizer in {folder} cannot be used: reading it, or its chat template, does not end "
        f"(after {CPU_SECONDS} s); its files are damaged or hostile: fetch them from elsewhere"
    )


def _fingerprint(folder: Path) -> str:
    """Hash of all files of a tokenizer: the same ones need not be tried twice."""
    found = hashlib.sha256()
    for file in sorted({file for pattern in _FILES for file in folder.glob(pattern)}):
        if file.is_file():
            found.update(f"{file.name} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
