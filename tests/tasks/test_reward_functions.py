"""Functions that were written for TRL's `reward_funcs` work unchanged; bad ones are named."""

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.rewards import make_rewards

CHAT = [{"role": "user", "content": "2+2?"}]

# As they stand in TRL's documentation and its users' scripts.
FUNCTIONS = """
import asyncio, re
import numpy as np

def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]

def by_content(prompts, completions, solution, **kwargs):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if c == s else 0.0 for c, s in zip(contents, solution)]

def ids(completion_ids, **kwargs):
    return [-len(ids) for ids in completion_ids]

def only_math(prompts, completions, subject, **kwargs):
    return [1.0 if s == "math" else None for s in subject]

def curriculum(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

def logs(completions, log_metric=None, log_extra=None, **kwargs):
    log_metric("chars", sum(map(len, completions)))
    log_extra("seen", completions)
    return np.array([0.5] * len(completions), np.float32)

async def awaited(completions, **kwargs):
    await asyncio.sleep(0)
    return [True for _ in completions]

def bare(completions, answer):
    return [float(a in c) for c, a in zip(completions, answer)]

def raises(completions, **kwargs):
    return [len(c) / 0 for c in completions]

def leaves(completions, **kwargs):
    raise SystemExit(3)

def short(completions, **kwargs): return [1.0]
def scalar(completions, **kwargs): return 1.0
def mean(completions, **kwargs): return np.array(1.0)
def unordered(completions, **kwargs): return {1.0, 0.0}
def huge(completions, **kwargs): return [1e308 for _ in completions]
def low(completions, **kwargs): return [-1e308 for _ in completions]
def logs_nan(completions, log_metric):
    log_metric("a", float("nan"))
    return [1.0 for _ in completions]
def text(completions, **kwargs): return "1"
def words(completions, **kwargs): return ["1", "0"]
def nan(completions, **kwargs): return [0.0, float("nan")]
def infinite(completions, **kwargs): return [10**400, 0]
def nested(completions, **kwargs): return [[1.0], [0.0]]
def asks(completions, difficulty): return [1.0 for _ in completions]
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """rewards(spec or name of a function, …): of the module above, beside the command."""
    import sys

    (tmp_path / "reward_module.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *filter(None, sys.path)])

    def make(*items, aliases=None):
        items = [{"name": i} if isinstance(i, str) else i for i in items]
        items = [i | {"name": f"reward_module:{i['name']}"} for i in items]
        return make_rewards(items, aliases=aliases)

    yield make
    sys.modules.pop("reward_module", None)


def examples(*metadata, prompt="?", answer=""):
    return [Example(str(i), prompt, answer, m) for i, m in enumerate(metadata)]


def values(outcomes):
    return [outcome.reward for outcome in outcomes]


def test_texts_for_text_and_messages_for_messages(rewards):
    assert values(rewards("length").score(examples({}, {}), ["ab", ""])) == [2.0, 0.0]
    rows = examples({"solution": "4"}, {"solution": "5"}, prompt=CHAT)
    outcomes = rewards("by_content").score(rows, ["4", "4"])
    assert values(outcomes) == [1.0, 0.0]
    assert [outcome.correct for outcome in outcomes] == [None, None]  # graded


def test_a_mapped_column_keeps_its_own_name_too(rewards):
    rows = examples({}, prompt=CHAT, answer="4")
    by_content = rewards("by_content", aliases={"solution": "answer", "question": "prompt"})
    assert values(by_content.score(rows, ["4"])) == [1.0]


def test_token_ids_progress_and_logs(rewards):
    rows = examples({}, {})
    assert values(rewards("ids").score(rows, ["a", "b"], completion_ids=[[1, 2], [3]])) == [-2, -1]
    assert values(rewards("curriculum").score(rows, ["a", "b"], step=3, steps=4)) == [0.75, 0.75]
    outcomes = rewards("logs").score(rows, ["a", "bcd"])
    assert values(outcomes) == [0.5, 0.5]
    assert outcomes[0].metrics == {"chars": 4.0}
    assert values(rewards("awaited").score(rows, ["a", "b"])) == [1.0, 1.0]


def test_a_function_gets_what_its_signature_names(rewards):
    assert values(rewards("bare").score(examples({}, answer="x"), ["axb"])) == [1.0]


def test_none_says_nothing_of_a_completion(rewards):
    rows = examples({"subject": "math"}, {"subject": "law"})
    both = rewards({"name": "only_math", "weight": 2.0}, {"name": "length", "weight": 0.5})
    first, second = both.score(rows, ["ab", "ab"])
    assert (first.reward, second.reward) == (3.0, 1.0)
    assert first.metrics == {"only_math": 1.0, "length": 2.0}
    assert second.metrics == {"length": 2.0}
    assert values(rewards("only_math").score(rows, ["", ""])) == [1.0, 0.0]


def test_a_threshold_makes_a_graded_reward_right_or_wrong(rewards):
    rows = examples({}, {})
    outcomes = rewards({"name": "length", "correct_from": 2}).score(rows, ["a", "ab"])
    assert [outcome.correct for outcome in outcomes] == [False, True]


def test_a_column_that_only_some_rows_have_is_none_elsewhere(rewards):
    rows = examples({"subject": "math"}, {})
    assert values(rewards("only_math").score(rows, ["", ""])) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "the reward reward_module:raises failed: ZeroDivisionError: division by zero"),
        ("leaves", "SystemExit: 3"),
        ("short", "returned 1 values; return a list of 2 numbers"),
        ("scalar", "returned float 1.0; return a list of 2 numbers"),
        ("mean", "returned ndarray array(1.); return a list of 2 numbers"),
        ("unordered", "returned set {0.0, 1.0}; return a list of 2 numbers"),
        ("logs_nan", "log_metric: a is float nan; must be finite"),
        ("text", "returned str '1'; return a list of 2 numbers"),
        ("words", "returned str '1' for completion 0"),
        ("nan", "returned float nan for completion 1; rewards must be finite"),
        ("infinite", "for completion 0; rewards must be finite"),
        ("nested", "returned list [1.0] for completion 0"),
        ("asks", "asks for `difficulty`, which the rows do not have; columns: id"),
    ],
)
def test_a_bad_function_is_named_with_its_line(rewards, name, said):
    with pytest.raises(T2GError) as caught:
        rewards(name).score(examples({}, {}), ["a", "b"])
    assert said in str(caught.value)
    assert "reward_module.py, line " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "items",
    [
        [{"name": "huge", "weight": 10}],
        ["huge", "huge"],
        [{"name": "huge", "weight": 10}, {"name": "low", "weight": 10}],
    ],
)
def test_a_sum_that_is_not_finite(rewards, items):
    with pytest.raises(T2GError, match=r"× 1e\+308.* is not finite; lower the weights"):
        rewards(*items).score(examples({}), ["a"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such:f", "there is no module 'no_such'"),
        ("reward_module:lenght", "has no 'lenght'; did you mean 'length'?"),
        ("reward_module:FUNCTIONS", "has no 'FUNCTIONS'"),
        ("reward_module:np.pi", "name a function of (prompts, completions, **columns)"),
    ],
)
def test_a_name_that_is_none(rewards, name, said):
    rewards("length")  # the module is there
    with pytest.raises(T2GError) as caught:
        make_rewards(name)
    assert said in str(caught.value)


def test_a_column_that_is_named_like_what_functions_get(rewards):
    row = Example("i", "?", "", {"completions": "x"})
    assert "has a name that rewards need; map it" in rewards("length").problem(row)
