"""The pure functions come without the libraries that only the rest of the package needs."""

import os
import re
import subprocess
import sys

HEAVY = {
    *("flax", "orbax", "transformers", "tokenizers", "pydantic", "grain"),
    *("tensorflow_datasets", "tensorflow"),
}


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
    assert not HEAVY & set(imported)


def test_everything_exported_exists():
    import t2g_jax
    from t2g_jax import losses, spans

    for module in (t2g_jax, losses, spans):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert t2g_jax.__version__ == "0.1.0"


def test_an_installation_without_extras_has_the_functions(bare_python, root):
    """Text, tokens and arrays: nothing that they take is missing."""
    program = """
import jax.numpy as jnp
from t2g_jax import losses, reductions, spans
text, quotes = "A wonderful evening it was.", [("a wonderfull evening", -1.0), ("was", 1.0)]
found = spans.align(text, quotes).spans
found = spans.to_token_spans(found, [(0, 1), (1, 11), (11, 19), (19, 22), (22, 27)])
starts, ends, rewards = zip(*((s.start, s.end, s.reward) for s in found))
rewards = spans.token_rewards(jnp.array(starts), jnp.array(ends), jnp.array(rewards), 5)
print(reductions.masked_sum(losses.reinforce(-rewards, rewards), rewards != 0))
"""
    result = bare_python("-c", program)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == 4.0


def test_without_the_extra_the_command_names_it(bare_python):
    program = """
from importlib.metadata import entry_points
(command,) = entry_points(group="console_scripts", name="t2g")
raise SystemExit(command.load()())
"""
    result = bare_python("-c", program)
    assert result.returncode == 2
    line = r"t2g: there is no \w+ here, which training needs: pip install 't2g_jax\[train\]'\n"
    assert re.fullmatch(line, result.stderr)
