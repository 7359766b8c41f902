"""What is printed never ends a command: no such character, nobody who reads, no stream at all."""

import os
import subprocess
import sys

import pytest

from t2g_jax.runtime import streams

PRINTS = """
import os, sys
from t2g_jax.runtime import streams
streams.prepare()
streams.prepare()
for _ in range(3000):
    print("γ ≥ 1 \\udcff …")
    print("γ ≥ 1", file=sys.stderr)
    sys.stdout.flush()
os.write(3, b"went on")
"""


def run(shell, **environment):
    """A program that prints, in a shell's pipeline; what it says on descriptor 3 at its end."""
    here = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    here |= {"CODE": PRINTS, "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", shell], env=here, capture_output=True, timeout=300)


def test_streams_that_are_closed_or_that_nobody_reads():
    done = run('{ "$PYTHON" -c "$CODE" 2>&- | head -n 1 >&2; } 3>&1')
    assert done.stdout == b"went on"
    assert done.stderr == "γ ≥ 1 ? …\n".encode()
    assert run('"$PYTHON" -c "$CODE" 3>&1 >&- 2>&- <&-').stdout == b"went on"


def test_an_encoding_without_the_character():
    done = run('"$PYTHON" -c "$CODE" 3>&1 | tail -n 1', PYTHONIOENCODING="ascii")
    assert done.stdout.endswith(b"? ? 1 ? ?\n") or done.stdout.endswith(b"went on")
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"? ? 1\n")


def test_streams_that_somebody_put_there_stay(capsys):
    before = sys.stdout, sys.stderr
    streams.prepare()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 1")
    done = run(f'"$PYTHON" -m t2g_jax run {config} --help > /dev/full')
    assert done.returncode == 2
    assert done.stderr.startswith(b"t2g: the standard output: No space left on device")
    assert done.stderr.count(b"\n") == 1
