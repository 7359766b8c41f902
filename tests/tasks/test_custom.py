"""Tasks of one's own: what they may be, and what is said of those that are none."""

import random
import sys

import pytest

from t2g_jax import user_code
from t2g_jax.errors import T2GError
from t2g_jax.tasks import Example, Score, find_task
from t2g_jax.tasks.base import capability, require_capability
from t2g_jax.tasks.scoring import (
    accuracy,
    floor_of,
    score_completions,
    score_metrics,
    score_of_critique,
)

MODULE = """
from t2g_jax.tasks import Example, Floor, Score

class Task:
    system = "Be brief."
    def __init__(self, n=2, **changes):
        self.n, self.changes = n, changes
        for name, value in changes.items():
            setattr(self, name, value)
    def split(self, split):
        return [Example(f"{split}-{i}", f"{split} {i}?", str(i)) for i in range(self.n)]
    def score(self, example, completion):
        return Score(len(completion) / 10, metrics={"chars": len(completion)})

class Checked(Task):
    def score(self, example, completion):
        return Score(float(completion == example.answer), completion == example.answer)
    def floor(self, examples):
        return Floor(0.5, "says 1")
    def solve(self, example):
        return example.answer
    def demonstrate(self, example, rng):
        return example.answer if rng.random() < 2 else None
    def judge(self, level):
        return self
    def critique(self, example, completion): ...

class Batched(Task):
    score = None
    def score_batch(self, examples, completions):
        return [Score(1.0) for _ in completions]

def make(**settings):
    return Task(**settings)

def lazy(n):
    class Sequence_(__import__("collections").abc.Sequence):
        def __len__(self): return 10**6
        def __getitem__(self, i): return Example(str(i), "?") if i != 7 else None
    task = Task()
    task.split = lambda split: Sequence_()
    return task

def breaks(): raise RuntimeError("no data here")
def nothing(): return 3

def with_split(found):
    task = Task()
    task.split = lambda split: eval(found)
    return task

def with_score(found):
    task = Task()
    task.score = lambda example, completion: eval(found)
    return task

def with_method(method, found):
    task = Checked()
    setattr(task, method, lambda *args: eval(found))
    return task
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The module above, beside a config."""
    (tmp_path / "task_module.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(filter(None, sys.path)))
    monkeypatch.setattr(user_code, "_folders", [])
    user_code.look_in(tmp_path)
    yield tmp_path / "task_module.py"
    sys.modules.pop("task_module", None)


def make(name="make", **settings):
    return find_task(f"task_module:{name}", settings)


def scored(task, completions):
    return score_completions(task, task.split("train")[: len(completions)], completions)


def test_the_least_that_a_task_is():
    task = make(n=3)
    assert [example.id for example in task.split("test")] == ["test-0", "test-1", "test-2"]
    assert task.split("train")[0] == Example("train-0", "train 0?", "0", {})
    assert scored(task, ["abc"]) == [Score(0.3, metrics={"chars": 3.0})]
    assert task.name == "task_module:make"
    assert task.system == "Be brief."
    for name in ("solve", "demonstrate", "judge", "floor"):
        assert capability(task, name) is None
    assert floor_of(task, task.split("test")) is None


def test_all_that_a_task_may_have():
    task = make("Checked")
    example = task.split("train")[1]
    assert scored(task, ["0", "0"]) == [Score(1.0, True), Score(0.0, False)]
    assert task.floor([example]).policy == "says 1"
    assert task.solve(example) == "1"
    assert require_capability(task, "demonstrate", needed_by="x")(example, random.Random(0)) == "1"
    assert task.judge(None).critique


def test_a_batch_of_scores():
    assert scored(make("Batched"), ["a", "b"]) == [Score(1.0), Score(1.0)]


def test_a_task_says_of_all_completions_whether_they_are_right_or_of_none(module):
    task = make("with_score", found="Score(1.0, None if completion else True)")
    assert scored(task, ["a", "b"])[0].correct is None
    with pytest.raises(T2GError, match=r"line \d+\): correct is None for some completions, and"):
        scored(task, ["a", ""])
    with pytest.raises(T2GError, match="say it of all, or of none"):
        scored(task, [""])


def test_prompts_that_are_in_both_splits_are_counted():
    assert make(n=3).notes() == []
    (note,) = make(
        "with_split", found="[Example(split, '1?'), Example(split + '2', split)]"
    ).notes()
    assert "with_split: 1 of 2 test examples have a prompt that is trained on, too" in note
    assert make("lazy", n=3).notes() == []


def test_a_long_sequence_is_checked_where_it_is_read():
    task = make("lazy", n=1)
    train = task.split("train")
    assert len(train) == 10**6
    assert train[5].id == "5"
    assert [example.id for example in train[2:4]] == ["2", "3"]
    with pytest.raises(T2GError, match=r"split\('train'\) of the task task_module:lazy: example 7"):
        train[7]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("3", "returned int 3; return a list of Example"),
        ("'abc'", "returned str 'abc'; return a list of Example"),
        ("[]", "has no examples"),
        ("['abc']", "example 0 is str 'abc'; give a t2g_jax.tasks.Example"),
        ("[Example(3, 'a')]", "example 0: id is int 3; must be text"),
        ("[Example('i', '')]", "example 0 ('i'): `prompt` is empty"),
        ("[Example('i', [{'role': 'bot', 'content': 'x'}])]", "has the role 'bot'"),
        ("[Example('i', 'a', 3)]", "('i'): answer is int 3; must be text"),
        ("[Example('i', 'a', '', [])]", "('i'): metadata is list []; must be a dict"),
        ("[Example('i', 'a', '', {'x': {1}})]", "('i'): metadata cannot be JSON: Object of type"),
        ("[Example('i', 'a', '', {'x': float('nan')})]", "metadata cannot be JSON"),
        ("[Example('i', 'a'), Example('i', 'b')]", "example 1: id 'i' is that of another, too"),
        ("[1/0]", "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_bad_examples_are_named(found, said):
    with pytest.raises(T2GError) as caught:
        make("with_split", found=found).split("train")
    assert said in str(caught.value)
    assert "split('train') of the task task_module:with_split" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("1.0", "returned float 1.0; return Score(reward, correct)"),
        ("None", "returned NoneType None; return Score"),
        ("Score(float('nan'))", "reward is float nan; must be a finite number"),
        ("Score('1')", "reward is str '1'; must be a finite number"),
        ("Score(True)", "reward is bool True; must be a finite number"),
        ("Score(1.0, 'yes')", "correct is str 'yes'; must be True, False or None"),
        ("Score(1.0, metrics={'a': None})", "a is NoneType None; must be a finite number"),
        ("Score(1.0, metrics=[1])", "metrics is list [1]; must be a dict"),
        ("{}['x']", "failed: KeyError: 'x'"),
        ("exit(3)", "failed: SystemExit: 3"),
    ],
)
def test_bad_scores_are_named_with_the_line(module, found, said):
    with pytest.raises(T2GError) as caught:
        scored(make("with_score", found=found), ["a"])
    assert said in str(caught.value)
    assert f"{module}, line" in str(caught.value) or "<string>" in found
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("solve", "3", "solve of the task task_module:with_method returned int 3; return the"),
        ("demonstrate", "[]", "demonstrate of the task task_module:with_method returned list []"),
        ("floor", "0.5", "return Floor(accuracy, policy)"),
        ("judge", "3", "return an object with critique(example, completion)"),
        ("judge", "1/0", "judge of the task task_module:with_method failed: ZeroDivisionError"),
    ],
)
def test_bad_capabilities_are_named(name, found, said):
    task = make("with_method", method=name, found=found)
    with pytest.raises(T2GError) as caught:
        getattr(task, name)(None, None) if name == "demonstrate" else getattr(task, name)(None)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("breaks", {}, "task_module:breaks() failed: RuntimeError: no data here"),
        ("nothing", {}, "returned int 3; return an object with split('train' | 'test')"),
        ("make", {"system": 3}, "system is int 3; must be text"),
        ("nothing", {"n": 1}, "task.settings: task_module:nothing takes no `n`; it takes none"),
        ("lazy", {}, "task_module:lazy needs `n`; set task.settings.n"),
        ("mak", {}, "has no 'mak'; did you mean 'make'?"),
    ],
)
def test_a_factory_that_makes_no_task(name, settings, said):
    with pytest.raises(T2GError) as caught:
        make(name, **settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said_with_who_needs_it_and_the_ways_out():
    with pytest.raises(T2GError) as caught:
        require_capability(make(), "demonstrate", needed_by="sft.steps (400)")
    assert str(caught.value) == (
        "the task task_module:make has no demonstrations, which sft.steps (400) needs: give it "
        "`demonstrate(example, rng)` (rows: a `demonstration` column), or begin with a pretrained "
        "model (model.pretrained, sft.steps 0)"
    )
    with pytest.raises(T2GError, match=r"has no judge of its own, which rltf-sd needs: name one"):
        require_capability(make(), "judge", needed_by="rltf-sd")


def test_metrics_of_scores():
    scores = [Score(1.0, True, True, {"a": 1.0}), Score(0.0, False, False), Score(0.5, metrics={})]
    assert score_metrics(scores) == {
        "accuracy": 0.5,
        "reward": 0.5,
        "formatted": 0.5,
        "score_a": 1.0,
    }
    assert score_metrics([Score(-1.0), Score(2.0)]) == {"reward": 0.5}
    assert accuracy([Score(1.0)]) is None


def test_a_critique_as_a_reward():
    from t2g_jax.spans import Quote
    from t2g_jax.tasks.base import Critique

    critique = Critique("So so.", (Quote("a", 1.0), Quote("b", -1.0), Quote("c", 1.0)))
    assert score_of_critique(critique) == Score(pytest.approx(1 / 3))
    assert score_of_critique(Critique("Hm.")) == Score(0.0)
