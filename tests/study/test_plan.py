"""Studies: one file becomes the configs of all cells, and whoever mistypes hears where."""

import re

import pytest

from t2g_jax.config import ConfigError
from t2g_jax.config.base import diff
from t2g_jax.study.plan import load_study


def test_cells(study_file):
    study = load_study(study_file())
    assert [cell.folder for cell in study.cells] == [
        f"matrix/seed{seed}/{arm}" for arm in ("grpo", "rltf-sd", "spans") for seed in (0, 1)
    ]
    cell = study.cells[-1]
    assert (cell.method, cell.config.seed, cell.config.methods) == ("text2grad", 1, ("text2grad",))
    assert cell.config.text2grad.steps == 7
    assert cell.config.sampling.max_new_tokens == 16
    assert cell.config.text2grad.token_budget == 500
    own = ["methods", "text2grad.steps", "text2grad.token_budget"]
    assert diff(cell.shared, cell.config) == own


def test_layers(study_file):
    """A task may replace what the base says, and have a number of tokens of its own."""
    tasks = {
        "a": {"sampling": {"max_new_tokens": 20}},
        "b": {"token_budget": 900, "task": {"name": "shortest_path"}},
    }
    study = load_study(study_file(tasks=tasks))
    configs = {cell.task: cell.config for cell in study.cells if cell.arm == "grpo"}
    assert configs["a"].sampling.max_new_tokens == 20
    assert configs["b"].sampling.max_new_tokens == 16
    assert configs["a"].grpo.token_budget == 500
    assert configs["b"].grpo.token_budget == 900
    assert configs["b"].task.name == "shortest_path"


def test_hash_follows_the_file(study_file):
    assert load_study(study_file()).hash == load_study(study_file()).hash
    assert load_study(study_file()).hash != load_study(study_file(token_budget=501)).hash


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": [0]}, "unknown key `seed`; did you mean `seeds`?"),
        ({"seeds": []}, "`seeds` is empty: name at least one"),
        ({"seeds": [0, 0]}, "`seeds` [0, 0] names one twice"),
        ({"seeds": [-1]}, "`seeds.0` is -1; must be greater than or equal to 0"),
        ({"arms": {}}, "`arms` is empty"),
        ({"tasks": {"shared": {}}}, "`tasks.shared` becomes a folder"),
        ({"arms": {"a/b": {"method": "grpo"}}}, "`arms.a/b` becomes a folder"),
        ({"name": ".."}, "`name` ('..') becomes a folder"),
        ({"base": {"seed": 1}}, "`base.seed` is set by the study, cell by cell; leave it out"),
        (
            {"base": {"sfd": {"steps": 3}}},
            "tasks.matrix on top of base: unknown key `sfd`; did you mean `sft`?",
        ),
        (
            {"tasks": {"a": {"sft": {"stps": 3}}, "b": {}}},
            "tasks.a on top of base: unknown key `sft.stps`; did you mean `sft.steps`?",
        ),
        ({"tasks": {"a": {"sft": 3}}}, "`sft` is 3; must be a section"),
        ({"tasks": {"a": {"token_budget": "many"}}}, '`grpo.token_budget` is "many"'),
        (
            {"base": {"evaluate": {"checkpoint": "best"}, "checkpoint": {"keep_best": "reward"}}},
            "tasks.matrix on top of base: `evaluate.checkpoint` is best; must be last",
        ),
        ({"arms": {"a": {}}}, "arms.a: `method` is missing"),
        ({"arms": {"a": {"method": "grop"}}}, 'arms.a: `method` is "grop"; must be'),
        (
            {"arms": {"a": {"method": "grpo", "grpo": {"group": 4}}}},
            "tasks.matrix, arms.a: unknown key `grpo.group`; did you mean `grpo.group_size`?",
        ),
        (
            {"arms": {"a": {"method": "grpo", "grpo": {"group_size": 1}}}},
            "tasks.matrix, arms.a: in `grpo`: group_size must be at least 2",
        ),
        (
            {"arms": {"a": {"method": "grpo", "sft": {"steps": 4}}}},
            "arms.a: `sft` is not for an arm to say",
        ),
        (
            {"arms": {"a": {"method": "grpo", "grpo": {"token_budget": 4}}}},
            "arms.a: `grpo.token_budget` is the study's, the same for all arms",
        ),
        (
            {"arms": {"a": {"method": "grpo", "baseline": "ppo"}, "b": {"method": "grpo"}}},
            "`arms.a.baseline` is 'ppo'; must be another arm: b",
        ),
        ({"arms": {"a": {"method": "grpo", "baseline": "a"}}}, "must be another arm"),
    ],
)
def test_mistakes_are_named(study_file, changes, says):
    path = study_file(**changes)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load_study(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_a_mistake_of_many_cells_is_said_once(study_file):
    tasks = {"a": {}, "b": {}, "c": {}}
    arms = {"x": {"method": "grpo", "grpo": {"stps": 4}}}
    with pytest.raises(ConfigError) as caught:
        load_study(study_file(tasks=tasks, arms=arms))
    (line,) = str(caught.value).splitlines()
    assert "tasks.a, arms.x (and 2 more): unknown key `grpo.stps`" in line


def test_every_file_of_the_repository_is_right():
    import pathlib

    folder = pathlib.Path(__file__).parents[2] / "configs" / "study"
    for path in folder.glob("*.yaml"):
        assert load_study(path).cells
