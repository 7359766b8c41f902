"""What packages bring by name, and methods from outside in a config: found, listed, refused."""

import dataclasses
import json
import sys

import package
import pytest
import yaml

from t2g_jax import cli, config, plugins, user_code
from t2g_jax.config import Config, ConfigError, changes, diff, load_config, to_yaml
from t2g_jax.errors import T2GError
from t2g_jax.judges.custom import make_judge
from t2g_jax.methods import make_method
from t2g_jax.phases import export, judge_calls, pipeline, reporting
from t2g_jax.run import needs, provenance
from t2g_jax.run.workspace import Workspace, accept_changes
from t2g_jax.study import runner
from t2g_jax.study.plan import load_study
from t2g_jax.tasks import Example, find_task
from t2g_jax.tasks.base import CritiqueLevel

WORDS = """
from t2g_jax.judges import Critique
from t2g_jax.tasks import Example, Score

class Words:
    def __init__(self, count):
        self.count = count

    def split(self, split):
        return [Example(f"{split}-{i}", f"{split} {i}") for i in range(self.count)]

    def score(self, example, completion):
        return Score(float(len(completion)))

class Brief:
    def __init__(self, praise):
        self.praise = praise

    def critique(self, example, completion):
        return Critique(self.praise)

def make_task(count=2):
    return Words(count)

def make_judge(praise="Well."):
    return Brief(praise)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    with package.forgotten_afterwards():
        yield folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """here("name", text): a file in the folder that the command is started in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(user_code, "_folders", [])

    def write(name, text):
        (folder / name).write_text(text)
        return folder / name

    with package.forgotten_afterwards():
        yield write


def method(name="my-method"):
    return package.METHOD.replace("{name}", name)


def error_of(*arguments, **options) -> str:
    with pytest.raises(T2GError) as caught:
        load_config(*arguments, **options)
    return str(caught.value)


# --- Tasks and judges ------------------------------------------------------------------------


def test_a_task_and_a_judge_of_a_package(site, here):
    package.install(
        site, "wordly", WORDS, tasks="words = wordly:make_task", judges="brief = wordly:make_judge"
    )
    path = here(
        "a.yaml",
        "task: {name: words, settings: {count: 3}}\njudge: {name: brief, settings: {praise: Yes.}}",
    )
    found = load_config(path)
    task = find_task(found.task.name, found.task.settings)
    assert [example.id for example in task.split("test")] == ["test-0", "test-1", "test-2"]
    judge = make_judge(found.judge.name, task, CritiqueLevel.WHERE, found.judge.settings)
    assert judge.critique(Example("x", "x"), "y").text == "Yes."
    with pytest.raises(T2GError, match=r"words takes no `cuont`; did you mean `count`\?"):
        find_task("words", {"cuont": 3})


@pytest.mark.parametrize("section", ["task", "judge"])
def test_what_is_not_known_is_an_error_with_all_that_is(site, here, section):
    package.install(site, "wordly", WORDS, **{f"{section}s": "words = wordly:make_task"})
    message = error_of(here("a.yaml", f"{section}: {{name: wrods}}"))
    assert f"in `{section}`: name is 'wrods'" in message
    assert "words of installed packages" in message
    assert "did you mean 'words'?" in message
    ask = {"task": lambda: find_task("wrods", {}), "judge": lambda: make_judge("wrods", None, None)}
    with pytest.raises(T2GError, match=rf"{section}.name is 'wrods'; .*\(words\); did you mean 'w"):
        ask[section]()


def test_nobody_guesses_whose_name_is_meant(site):
    lines = "words = one:make_task\ndata = one:make_task"
    package.install(site, "one", WORDS, tasks=lines, judges="task = one:make_judge")
    package.install(site, "other", WORDS, "2.1", tasks="words = other:make_task")
    with pytest.raises(T2GError, match=r"the package one 1.0 .* and by the package other 2.1 "):
        find_task("words", {})
    with pytest.raises(T2GError, match=r"'data' is t2g_jax's own, but .* the package one 1.0 "):
        find_task("data", {})
    with pytest.raises(T2GError, match=r"'task' is t2g_jax's own, but .* the package one 1.0 "):
        make_judge("task", None, CritiqueLevel.WHERE)
    assert find_task("binary_matrix", {}, preset="tiny").name  # which they do not bring


@pytest.mark.parametrize(
    ("code", "value", "said"),
    [
        ("import no_such_thing", "p_broken:make", "No module named 'no_such_thing'"),
        ("def mak(): ...", "p_broken:make", "has no 'make'; did you mean 'mak'?"),
        ("make = 3", "p_broken:make", "p_broken:make is int 3"),
        ("raise SystemExit(3)", "p_broken:make", "SystemExit: 3"),
        (None, "p_broken:make", "there is no module 'p_broken'"),
        ("", "p_broken", "it must name 'package.module:function'"),
        ("", "p_broken make", "it must name 'package.module:function'"),
        ("", "p_broken : make [extra]", "has no 'make'"),
    ],
)
def test_one_that_is_broken_says_whose_it_is(site, here, code, value, said):
    package.install(site, "p_broken", code, tasks=f"words = {value}", methods=f"mine = {value}")
    assert load_config(here("a.yaml", "seed: 3")).seed == 3
    with pytest.raises(T2GError) as caught:
        find_task("words", {})
    for message in (str(caught.value), error_of(here("b.yaml", "methods: [mine]"))):
        assert said in message
        assert "the package p_broken 1.0 (" in message
        assert "update p_broken 1.0, or uninstall it" in message
        assert "\n" not in message


def test_a_package_that_appears_is_seen(site):
    assert plugins.names(plugins.TASKS) == ()
    package.install(site, "wordly", WORDS, tasks="words = wordly:make_task")
    assert plugins.names(plugins.TASKS) == ("words",)


# --- Methods in a config ---------------------------------------------------------------------


def test_a_method_of_a_file_has_its_section(here, capsys):
    here("mine.py", method())
    path = here("a.yaml", 'plugins: ["mine:Mine"]\nmethods: [grpo, my-method]\nseed: 3')
    found = load_config(path, ["--my-method.steps", "7"])
    assert found.known_methods == (*config.METHODS, "my-method")
    assert (found.of_method("my-method").steps, found.my_method.severity) == (7, 1.0)
    assert load_config(here("again.yaml", to_yaml(found))) == found
    assert "my_method.severity" in json.dumps(provenance.inputs("my-method", found))
    assert cli.main(["run", str(path), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "my_method options: What my-method is told. --my_method.steps" in shown
    assert "--my_method.severity FLOAT How severe it is. (default: 1.0)" in shown
    assert "rejection-sampling,my-method}" in shown
    # None of it stays for configs that do not name it.
    assert type(load_config(here("b.yaml", "seed: 3"))) is Config
    assert not hasattr(Config, "my_method")


def test_the_command_line_says_it_as_well(here):
    here("mine.py", method())
    words = ["--plugins", "mine:Mine", "--methods", "my-method", "--my_method.severity=2.5"]
    found = load_config(here("a.yaml", ""), words)
    assert (found.methods, found.my_method.severity) == (("my-method",), 2.5)


def test_annotations_may_be_text(here):
    here("mine.py", "from __future__ import annotations\n" + method())
    path = here("a.yaml", 'plugins: ["mine:Mine"]\nmy_method: {severity: 2}')
    assert load_config(path).my_method.severity == 2.0


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("my_method: {svereity: 3}", [], "unknown key `my_method.svereity`; did you mean `my_m"),
        ("my_method: {severity: high}", [], '`my_method.severity` is "high"; must be a valid'),
        ("", ["--my-method.svereity=3"], "unknown option `--my-method.svereity`; did you mean"),
        ("", ["--methods", "my-metod"], "did you mean 'my-method'? (one of your own: name its"),
        ("checkpoint: {keep_best: clean}", [], "keep_best (clean) is measured by no method"),
    ],
)
def test_its_section_is_checked_as_ours_are(here, text, words, said):
    here("mine.py", method())
    path = here("a.yaml", f'plugins: ["mine:Mine"]\n{text}')
    message = error_of(path, words)
    assert said in message
    assert message.startswith("command line: " if words else f"{path}: ")


def without(old: str, new: str) -> str:
    assert old in method()
    return method().replace(old, new)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (without('name = "my-method"', ""), "has the name NoneType None; say name = 'my-method'"),
        (without('"my-method"', '"My method"'), "has the name str 'My method'; say name ="),
        (method("grpo"), "has the name 'grpo', which is t2g_jax's own"),
        (method("reward-model"), "has the name 'reward-model', which is t2g_jax's own"),
        (method("of-method"), "has the name 'of-method', which is t2g_jax's own"),
        (method("wandb"), "has the name 'wandb', which is t2g_jax's own"),
        (without("section = Settings", ""), "has the section NoneType None; say section ="),
        (without("(RolloutConfig)", ""), "a subclass of t2g_jax.config.RolloutConfig"),
        (without("@dataclasses.dataclass(frozen=True)", ""), "put @dataclasses.dataclass(frozen="),
        (without("float = 1.0", "float"), "non-default argument 'severity'"),
        (without("float = 1.0", "range = range(3)"), "its section Settings cannot be used"),
        (without("def collect", "def colect"), "has no method collect(state, step)"),
        (without("class Mine:", "def Mine(): ...\nclass Other:"), "is no class; a method is one"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    ],
)
def test_what_is_no_method_is_refused_in_a_line(here, code, said):
    here("mine.py", code)
    message = error_of(here("a.yaml", 'plugins: ["mine:Mine"]'))
    assert said in message
    assert "plugins: mine" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["plugins: [mine]", "plugins: mine", "plugins: [a:B, a:B]"])
def test_what_plugins_cannot_be(here, text):
    here("a.py", method())
    here("a.py", method().replace("Mine", "B"))
    assert "plugins" in error_of(here("a.yaml", text))


def test_two_methods_of_one_name_are_refused(site, here):
    here("mine.py", method())
    here("other.py", method())
    message = error_of(here("a.yaml", 'plugins: ["mine:Mine", "other:Mine"]'))
    assert "'my-method' is brought by mine:Mine and by other:Mine" in message.replace(
        f"{'a.yaml'}: plugins: ", ""
    )
    package.install(site, "one", method(), methods="my-method = one:Mine")
    message = error_of(here("a.yaml", 'plugins: ["mine:Mine"]\nmethods: [my-method]'))
    assert "mine:Mine and by the package one 1.0 (my-method = one:Mine)" in message
    package.install(site, "two", method(), methods="my-method = two:Mine")
    message = error_of(here("a.yaml", "methods: [my-method]"))
    assert "by the package one 1.0 " in message
    assert "by the package two 1.0 " in message


def test_a_package_cannot_replace_a_method_of_ours(site, here):
    package.install(site, "one", method("grpo"), methods="grpo = one:Mine")
    assert load_config(here("a.yaml", "methods: [ppo]")).methods == ("ppo",)
    message = error_of(here("a.yaml", "methods: [grpo]"))
    assert "'grpo' is t2g_jax's own" in message
    assert "the package one 1.0" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: [my-method]", []),
        ("my_method: {steps: 3}", []),
        ("", ["--my-method.steps", "3"]),
        ("", ["--methods", "my-method"]),
    ],
)
def test_a_method_of_a_package_is_known_where_it_is_named(site, here, text, words):
    package.install(site, "one", method(), methods="my-method = one:Mine")
    found = load_config(here("a.yaml", text), words)
    assert found.known_methods[-1] == "my-method"
    assert found.plugins == ()
    assert type(load_config(here("b.yaml", ""))) is Config
    assert load_config(here("b.yaml", ""), methods=["my-method"]).my_method.severity == 1.0


def test_the_entry_point_has_the_name_of_its_method(site, here):
    package.install(site, "one", method("other"), methods="my-method = one:Mine")
    message = error_of(here("a.yaml", "methods: [my-method]"))
    assert "has the name 'other'; the entry point must have it, too" in message


def test_help_lists_what_is_installed_and_warns_of_what_is_broken(site, here, capsys):
    package.install(site, "one", method(), methods="my-method = one:Mine")
    package.install(site, "bad", "import nowhere_to_be_found", methods="bad-one = bad:Mine")
    path = str(here("a.yaml", ""))
    assert cli.main(["train-policy", path, "--help"]) == 0
    said = capsys.readouterr()
    assert "my_method options: What my-method is told." in " ".join(said.out.split())
    assert "rejection-sampling,bad-one,my-method" in "".join(said.out.split())
    (warning,) = said.err.splitlines()
    assert warning.startswith("t2g: warning: ")
    assert "the package bad 1.0 (bad-one = bad:Mine), which is broken" in warning
    assert cli.main(["train-policy", path, "--method", "bad-one"]) == 2
    assert "the package bad 1.0" in capsys.readouterr().err
    assert cli.main(["train-policy", path, "--method", "my-metod"]) == 2
    said = capsys.readouterr().err
    assert "--method: invalid choice: 'my-metod'; must be 'text2grad'" in said
    assert "did you mean 'my-method'?" in said


def test_its_section_says_what_comes_before_it(here):
    said = """
    @property
    def needs_reward_model(self):
        return True

    @property
    def critiques_per_step(self):
        return 3

    @property
    def rows_per_step(self):
        return 2

class Mine:"""
    here("mine.py", method().replace("\nclass Mine:", said))
    found = load_config(here("a.yaml", 'plugins: ["mine:Mine"]\nmethods: [my-method]'))
    assert list(pipeline.phases(found)) == ["sft", "annotate", "reward_model", "my-method"]
    assert provenance.parents("my-method", found) == ("sft", "reward_model")
    read = provenance.inputs("my-method", found)
    assert {"plugins", "my_method.severity", "reward_model.labels"} - set(read) == {
        "reward_model.labels"
    }
    assert "reward_model.critique_conditioned" in read
    assert needs.asks_judge(found.my_method)
    calls = judge_calls.judge_calls(found)
    assert calls["my-method"] == 3 * 100 + 3 * 6  # and those in the report
    assert calls["annotate"] == 1000 * 2
    assert export.heads_of(found, "my-method") == ()


def test_it_may_be_one_of_ours_with_more(here, tiny_context):
    here(
        "mine.py",
        """
import dataclasses
from t2g_jax.config import PPOConfig
from t2g_jax.methods import PPO

@dataclasses.dataclass(frozen=True)
class Settings(PPOConfig):
    steps: int = 7

class Mine(PPO):
    name = "my-ppo"
    section = Settings
""",
    )
    words = ["--plugins", "mine:Mine", "--my-ppo.gamma", "0.5"]
    found = load_config(here("a.yaml", to_yaml(tiny_context.config)), words)
    made = make_method("my-ppo", dataclasses.replace(tiny_context, config=found))
    assert (made.config.gamma, made.plan.steps) == (0.5, 7)
    assert "value_head" in made.params
    assert export.heads_of(found, "my-ppo") == ("value_head",)
    assert "value_loss" in made.config.measures


# --- In a work folder ------------------------------------------------------------------------


def begun(folder, found):
    """A work folder that looks as if a method had worked there."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(found))
    for name in ("tokenizer", "sft", "my_method"):
        (folder / name).mkdir()
    (folder / "my_method" / "complete.json").write_text("{}")


def test_configs_are_compared_whoever_knows_the_method(here):
    here("mine.py", method())
    path = here("a.yaml", "name: a")
    knows = load_config(path, ["--plugins", "mine:Mine"])
    assert diff(Config(name="a"), knows) == ["plugins"]
    more = load_config(path, ["--plugins", "mine:Mine", "--my-method.severity=3"])
    assert diff(more, Config(name="a")) == ["plugins", "my_method.severity"]
    assert changes(Config(name="a"), more)[1:] == ["my_method.severity: 1.0 → 3.0"]
    assert diff(Config(name="a"), Config(name="a")) == []


def test_a_folder_is_opened_again_where_the_module_is(tmp_path, here, capsys):
    file = here("mine.py", method())
    found = load_config(here("a.yaml", 'plugins: ["mine:Mine"]\nmethods: [my-method]'))
    begun(tmp_path / "run", found)
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again == found
    assert Workspace(tmp_path / "run", again).complete_phases() == ["my-method"]
    file.unlink()
    del sys.modules["mine"]
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "plugins: there is no module 'mine': install it, or put it beside" in said


def elsewhere(folder, monkeypatch):
    """As a new process that is started in another folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in user_code.folders()])
    monkeypatch.setattr(user_code, "_folders", [])
    del sys.modules["mine"]


def test_a_folder_is_opened_from_anywhere(tmp_path, here, monkeypatch):
    here("mine.py", method())
    here("rows.jsonl", '{"prompt": "a"}')
    found = load_config(here("a.yaml", 'plugins: ["mine:Mine"]'))
    run = tmp_path / "run"
    Workspace(run, found).begin()
    elsewhere(tmp_path, monkeypatch)
    assert to_yaml(load_config(run / "config.yaml")) == to_yaml(found)
    assert user_code.find_path("rows.jsonl") == str(tmp_path / "here" / "rows.jsonl")
    elsewhere(tmp_path, monkeypatch)
    (run / user_code.FOLDERS_NOTE).write_text("[3]")
    assert "folders.json is damaged (`0`: input should be" in error_of(run / "config.yaml")


def test_so_is_one_whose_config_was_changed(tmp_path, here, monkeypatch):
    plain = load_config(here("a.yaml", "name: a"))
    begun(tmp_path / "run", plain)
    here("mine.py", method())
    changed = load_config(here("a.yaml", 'name: a\nplugins: ["mine:Mine"]'))
    assert accept_changes(tmp_path / "run", changed) == ['plugins: [] → ["mine:Mine"]']
    elsewhere(tmp_path, monkeypatch)
    assert to_yaml(load_config(tmp_path / "run" / "config.yaml")) == to_yaml(changed)


def test_a_folder_whose_package_is_gone_says_so(tmp_path, site, here, capsys):
    package.install(site, "one", method(), methods="my-method = one:Mine")
    found = load_config(here("a.yaml", "methods: [my-method]"))
    begun(tmp_path / "run", found)
    for file in sorted(site.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert '`methods.0` is "my-method"; must be' in said
    assert "or install the package that brings it" in said


def test_what_has_worked_in_a_folder_is_known_there(tmp_path, site, here):
    """Though its config.yaml is older than the method: which are trained changes nothing else."""
    package.install(site, "one", method(), methods="my-method = one:Mine")
    begun(tmp_path / "run", load_config(here("a.yaml", "methods: [grpo]")))
    found = load_config(tmp_path / "run" / "config.yaml")
    assert found.known_methods[-1] == "my-method"
    assert Workspace(tmp_path / "run", found).complete_phases() == ["my-method"]


def test_a_command_knows_the_methods_of_its_folder(tmp_path, site, here, monkeypatch):
    """Though its config does not speak of them: reports are of all that is there."""
    package.install(site, "one", method(), methods="my-method = one:Mine")
    plain = here("a.yaml", "methods: [grpo]")
    begun(tmp_path / "run", load_config(plain))
    asked = []
    monkeypatch.setattr(reporting, "run", lambda config, workdir: asked.append(config))
    assert cli.main(["report", str(plain), "--workdir", str(tmp_path / "run")]) == 0
    assert asked[0].known_methods[-1] == "my-method"
    assert asked[0].methods == ("grpo",)


def test_a_section_that_only_one_config_has_is_no_change_as_it_is(tmp_path, site, here):
    package.install(site, "one", method(), methods="my-method = one:Mine")
    begun(tmp_path / "run", load_config(here("a.yaml", "methods: [my-method]")))
    plain = load_config(here("a.yaml", "methods: [grpo]"))
    Workspace(tmp_path / "run", plain)
    changed = load_config(here("a.yaml", "my_method: {severity: 2}"))
    with pytest.raises(T2GError, match=r"another config \(my_method.severity: 1.0 → 2.0\)"):
        Workspace(tmp_path / "run", changed)


def test_how_rows_are_computed_may_change(here):
    assert config.is_aside("my_method.rows_at_once")
    assert config.is_aside("my_method.eval_every")
    assert not config.is_aside("my_method.severity")
    assert not config.is_aside("my_method.optimizer.rows_at_once")
    assert not config.is_aside("plugins")  # whose method it is


def test_another_plugin_is_another_config(tmp_path, here):
    here("mine.py", method())
    path = here("a.yaml", "name: a")
    begun(tmp_path / "run", load_config(path))
    knows = load_config(path, ["--plugins", "mine:Mine"])
    with pytest.raises(T2GError, match=r"another config \(plugins: \[\] → \[\"mine:Mine\"\]\)"):
        Workspace(tmp_path / "run", knows)


# --- In a study ------------------------------------------------------------------------------


def test_a_study_compares_it(tmp_path, here, monkeypatch):
    here("mine.py", method())
    file = {
        "base": {"plugins": ["mine:Mine"]},
        "tasks": {"rows": {"task": {"settings": {"max_n": 3}}}},
        "arms": {
            "grpo": {"method": "grpo"},
            "mine": {"method": "my-method", "my_method": {"severity": 2.0}},
        },
    }
    study = load_study(here("study.yaml", yaml.dump(file)))
    cells = study.cells
    (cell,) = {cell.arm: cell for cell in cells if cell.seed == 0 and cell.arm == "mine"}.values()
    assert (cell.method, cell.config.my_method.severity) == ("my-method", 2.0)
    assert cell.config.my_method.token_budget == 100_000
    assert type(cell.shared) is type(cell.config)
    file["arms"]["mine"]["method"] = "my-metod"
    with pytest.raises(ConfigError, match=r"arms.mine: `method` is .* did you mean 'my-method'"):
        load_study(here("study.yaml", yaml.dump(file)))
    # Its cells are run by other processes, which may have been started anywhere.
    *_, job = runner.jobs_of(study, tmp_path / "cells")
    runner.begin(dataclasses.replace(job, copies=()))
    elsewhere(tmp_path, monkeypatch)
    assert to_yaml(load_config(job.folder / "config.yaml")) == to_yaml(job.config)
