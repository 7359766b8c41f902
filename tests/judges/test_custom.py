"""Judges of one's own: the example of docs/judges.md, and how a name becomes a judge."""

import re
import sys

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.judges import CritiqueLevel, JudgeError
from t2g_jax.judges.custom import make_judge
from t2g_jax.judges.guard import Guard
from t2g_jax.spans import Quote, align
from t2g_jax.tasks import Example, make_task
from t2g_jax.tasks.puzzles.binary_matrix import BinaryMatrixJudge

TASK = make_task("binary_matrix", preset="tiny", train_size=4, test_size=2, prompt_style="short")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """here("name", "code"): a module in the folder that the command is started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def make(name, **settings):
    return make_judge(name, TASK, CritiqueLevel.WHAT, settings)


def test_the_tasks_own():
    judge = make("task")
    assert isinstance(judge, BinaryMatrixJudge)
    assert judge.level is CritiqueLevel.WHAT


def test_the_example_of_the_documentation(root, here):
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs/judges.md").read_text(), re.DOTALL)
    here("brief", code)
    assert make("brief:make", praise="Well done.").praise == "Well done."
    judge = make("brief:make")
    example = Example("id", "?", "1 0\n0 1", {})

    def said(completion, example=example):
        (outcome,) = Guard().critiques(judge, [example], [completion])
        return outcome

    right, wrong = "\\boxed{1 0\n0 1}", "\\boxed{1 0\n1 1}"
    assert said(right).text == "Correct."
    assert said(wrong).text == "Look again at row 2."
    assert said(wrong).quotes == (Quote("1 1", -1.0),)
    (span,) = align(wrong, said(wrong).quotes).spans
    assert wrong[span.start : span.end] == "1 1"
    assert said("Hm.").text == "Put the answer in \\boxed{}."
    failure = said(right, Example("id", "?", "", {}))
    assert isinstance(failure, JudgeError)
    assert (failure.reason, failure.details) == ("no answer to compare with", "id")


def test_the_batches_of_the_documentation(root, here):
    (code,) = re.findall(r"```py\n(.*?)```", (root / "docs/judges.md").read_text(), re.DOTALL)
    service = "lambda asked: [{'status': 200 + 300 * (c == 'b'), 'text': p} for p, c in asked]"
    here("many", f"{code}\n\ndef make():\n    return ManyAtOnce({service})\n")
    examples = [Example(str(i), f"Question {i}", "", {}) for i in range(3)]
    found = list(Guard().critiques(make("many:make"), examples, ["a", "b", "c"]))
    assert [getattr(outcome, "text", "-") for outcome in found] == ["Question 0", "-", "Question 2"]
    assert found[1].reason == "refused"


def test_a_factory_within_a_class_of_a_package(here, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "judges.py").write_text(
        "class Judge:\n"
        "    name = 'mine'\n"
        "    @classmethod\n"
        "    def of(cls, task, level):\n"
        "        self = cls()\n"
        "        self.level = level\n"
        "        return self\n"
        "    def critique(self, example, completion): ...\n"
    )
    assert make("mine.judges:Judge.of").level is CritiqueLevel.WHAT


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import numppy", r"faulty cannot be imported: ModuleNotFoundError: .*'numppy'.*line 1\)"),
        ("x = 1\nx = = 2", r"faulty cannot be imported: SyntaxError: .*faulty.py, line 2\)"),
        ("x = 1 / 0", r"cannot be imported: ZeroDivisionError: .*faulty.py, line 1\)"),
        (
            "def make(task, level):\n    return task['x']",
            r"judge.name: faulty:make\(task=…, level=…\) failed: TypeError.*line 2",
        ),
        ("def make(task, level): ...", "returned NoneType None; return an object with critique"),
        ("def make(): return object()", r"or critique_batch\(examples, completions\)"),
        ("import sys\nsys.exit(3)", r"cannot be imported: SystemExit: 3 \(.*faulty.py, line 2\)"),
        ("def make():\n    raise SystemExit(3)", r"failed: SystemExit: 3 \(.*faulty.py, line 2\)"),
        ("def make(examples): ...", "judge.settings: faulty:make needs `examples`; set judge.se"),
        ("def make(task, /): ...", "judge.name: faulty:make takes `task` by position alone"),
        ("def mke(task, level): ...", r"faulty \(.*faulty.py\) has no 'make'; did you mean 'mke'"),
        ("make = 3", "is int 3; name a function of"),
        (
            "from t2g_jax.errors import T2GError\n"
            "def make(task, level):\n    raise T2GError('set BRIEF_KEY first')",
            "^set BRIEF_KEY first$",
        ),
    ],
)
def test_faulty_code(here, code, expected):
    here("faulty", code)
    with pytest.raises(T2GError, match=expected):
        make("faulty:make")


SETTINGS = """
class Judge:
    def __init__(self, model, *, temperature=1.0, stop=(), **about):
        self.about = {"model": model, "temperature": temperature, "stop": stop, **about}
    def critique_batch(self, examples, completions): ...
def strict(model="small", temperature=1.0, task=None): return Judge(model, task=task)
def loose(**settings): return Judge(**settings)
async def late(model): return Judge(model)
"""


def test_settings_are_keywords(here):
    here("brief", SETTINGS)
    made = make("brief:Judge", model="small", stop=["a", 1], extra={"b": None})
    expected = {"model": "small", "temperature": 1.0, "stop": ["a", 1], "extra": {"b": None}}
    assert made.about == expected
    assert make("brief:strict", model="x").about["task"] is TASK
    assert "task" not in make("brief:loose", model="x").about  # it did not ask for it by name
    assert make("brief:late", model="x").about["model"] == "x"


def test_settings_of_the_environment(here, monkeypatch):
    here("brief", SETTINGS)
    monkeypatch.setenv("BRIEF_KEY", "sk-123")
    made = make("brief:Judge", model="small", api_key="${BRIEF_KEY}")
    assert made.about["api_key"] == "sk-123"
    monkeypatch.delenv("BRIEF_KEY")
    with pytest.raises(T2GError, match=r"judge.settings.api_key is .*no environment variable BR"):
        make("brief:Judge", model="small", api_key="${BRIEF_KEY}")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("strict", {"modle": 3}, "judge.settings: brief:strict takes no `modle`; did you mean `mo"),
        ("strict", {"zzz": 3}, "takes no `zzz`; it takes `model`, `temperature`$"),
        ("Judge", {}, "judge.settings: brief:Judge needs `model`; set judge.settings.model"),
        ("strict", {"task": "x"}, "`task` is no setting: a factory that has a parameter of that"),
        ("loose", {"model": 1, "level": 2}, "`level` is no setting"),
    ],
)
def test_settings_that_a_factory_does_not_take(here, name, settings, expected):
    here("brief", SETTINGS)
    with pytest.raises(T2GError, match=expected):
        make(f"brief:{name}", **settings)


def test_no_such_module(here, tmp_path):
    with pytest.raises(T2GError, match="no module 'nowhere': install it, or put it") as caught:
        make("nowhere.judges:make")
    assert str(tmp_path) in str(caught.value)
