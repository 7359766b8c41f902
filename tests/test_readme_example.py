"""The README's first example runs as it stands."""

import os
import re
import subprocess
import sys


def test_the_first_example_runs(root, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text(), re.M | re.S)
    example = next(block for block in blocks if "t2g_jax" in block)
    result = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
