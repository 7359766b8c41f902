"""A few of the many ways in which a file of a finished run can be damaged; tests/support/damage.py
tries as many as one likes."""

import itertools

import damage
import pytest

from t2g_jax.config import to_yaml

TRIED = 16


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory, compiled_once):
    """A run with one method, and what reading commands make of it while it is whole."""
    place = tmp_path_factory.mktemp("damage")
    workdir, config = tiny_run.branch(place / "whole", "sft", "grpo", methods=("grpo",))
    (workdir / "config.yaml").write_text(to_yaml(config))
    return damage.Folder(workdir, place)


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_it_is_named_or_marked_or_changes_nothing(folder, compiled_once, command):
    with compiled_once():
        whole = damage.run(command, folder.restore())
        assert whole.status == 0, whole
        tried = 0
        for one in damage.damages(folder.restore(), seed=len(command)):
            if tried == TRIED:
                return
            if one.apply(folder.restore()):
                tried += 1
                found = damage.run(command, folder.path)
                assert not damage.problem(one, folder.path, whole, found), one


def test_a_result_that_changes_in_silence_is_seen(folder):
    whole = damage.Outcome(0, "grpo: 25.0%", None)
    one = damage.Damage("grpo/evaluation.json", "value", 0)

    def problem(*outcome):
        return damage.problem(one, folder.path, whole, damage.Outcome(*outcome))

    assert "another result in silence" in problem(0, "grpo: 50.0%", None)
    assert not problem(0, "Warning: other settings\ngrpo: 50.0%", None)
    assert "not named" in problem(2, "t2g: something is damaged", None)
    assert "more than a line" in problem(
        2, f"t2g: {folder.path}/{one.file} is damaged\nor so", None
    )
    assert not problem(2, f"t2g: {folder.path}/{one.file} is damaged", None)
    assert problem(1, "", None).startswith("status 1")
    assert problem(None, "", None, "Traceback") == "Traceback"


def test_every_kind_of_damage_is_done(folder):
    done = set()
    for one in itertools.islice(damage.damages(folder.path, seed=0), 200):
        if one.apply(folder.restore()):
            done.add(one.kind)
    folder.restore()
    assert done == set(damage.KINDS)
