"""One puzzle of reasoning-gym is imported without the others, and leaves nothing behind."""

import subprocess
import sys

import pytest

from t2g_jax.tasks.puzzles import gym

PROGRAM = """
import sys
from t2g_jax.tasks import PUZZLES, make_task
for name in PUZZLES:
    assert make_task(name, preset="tiny", test_size=2).split("test")[0].prompt
heavy = {"sympy", "matplotlib", "networkx", "PIL"} & set(sys.modules)
assert not heavy, heavy
assert not [name for name in sys.modules if name.startswith("reasoning_gym")]
import reasoning_gym
entry = reasoning_gym.create_dataset("binary_matrix", size=1, seed=0)[0]
assert entry["answer"]
assert make_task("shortest_path", preset="tiny", seed=1, test_size=2).split("test")
"""


def test_other_puzzles_are_not_imported_and_can_be_later():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["algorithmic.none_such", "none_such.binary_matrix"])
def test_a_module_that_is_not_there(name):
    with pytest.raises(ModuleNotFoundError) as error:
        gym.gym_module(name)
    assert error.value.name.startswith("reasoning_gym")


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr(gym, "_PACKAGE", "no_such_gym")
    with pytest.raises(ModuleNotFoundError) as error:
        gym.gym_module("algorithmic.binary_matrix")
    assert error.value.name == "no_such_gym"
