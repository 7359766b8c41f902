"""Critiques on disk: asked for once, found again bit for bit, and only by whom they belong to."""

import collections
import dataclasses
import types

import pytest

from t2g_jax.judges import Critique, JudgeError
from t2g_jax.judges.cache import MAX_LINE, CritiqueCache, identity_of
from t2g_jax.judges.guard import Guard
from t2g_jax.spans import Quote
from t2g_jax.tasks import Example

ONE = Example("1", "What is 1 + 1?", "2", {"n": 2})
TWO = Example("2", "What is 2 + 2?", "4", {"n": 4})
SAID = Critique("Ψ wrong.\n", (Quote("1", -0.1, 2, "a", "b"),), "because")


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "critiques.jsonl"


class Fickle:
    """Never says the same twice; fails where it is asked to."""

    name = "fickle"

    def __init__(self):
        self.asked = []

    def critique(self, example, completion):
        self.asked.append((example.id, completion))
        if completion == "fail":
            raise JudgeError("timeout")
        return Critique(f"Number {len(self.asked)}.")


def ask(judge, path, *pairs, identity="a", **options):
    tally = collections.Counter()
    guard = Guard(cache=CritiqueCache(path, identity), **options)
    examples, completions = zip(*pairs, strict=True)
    return list(guard.critiques(judge, examples, completions, tally)), dict(tally)


def test_what_was_put_is_got_bit_for_bit(path):
    cache = CritiqueCache(path, "a")
    assert cache.get(ONE, "3") is None
    assert not path.exists()
    cache.put(ONE, "3", SAID)
    for reader in (cache, CritiqueCache(path, "a")):
        assert reader.get(ONE, "3") == SAID
        assert reader.get(dataclasses.replace(ONE, id="other"), "3") == SAID
        assert reader.get(ONE, "3 ") is None
        assert reader.get(TWO, "3") is None
        assert reader.get(dataclasses.replace(ONE, answer="3"), "3") is None
    assert CritiqueCache(path, "b").get(ONE, "3") is None


def test_the_first_critique_stays(path):
    cache = CritiqueCache(path, "a")
    cache.put(ONE, "3", SAID)
    cache.put(ONE, "3", Critique("Another."))
    assert len(path.read_text().splitlines()) == len(cache) == 1
    assert cache.get(ONE, "3") == SAID


@pytest.mark.parametrize("workers", [1, 4])
def test_a_judge_is_asked_once_about_a_completion(path, workers):
    judge = Fickle()
    pairs = [(ONE, "a"), (ONE, "b"), (ONE, "a"), (TWO, "a"), (ONE, "a")]
    first, tally = ask(judge, path, *pairs, workers=workers)
    assert len(judge.asked) == 3
    assert first[0] == first[2] == first[4]
    assert tally == {"judge_calls": 3, "judge_cached": 2}
    again, tally = ask(judge, path, *pairs, (TWO, "b"))
    assert again[:5] == first
    assert tally == {"judge_calls": 1, "judge_cached": 5}


def test_failures_are_asked_about_again(path):
    judge = Fickle()
    found, _ = ask(judge, path, (ONE, "fail"), (ONE, "a"), (ONE, "fail"))
    assert [type(outcome) for outcome in found] == [JudgeError, Critique, JudgeError]
    assert len(judge.asked) == 2
    _, tally = ask(judge, path, (ONE, "fail"), (ONE, "a"))
    assert tally == {"judge_calls": 1, "judge_cached": 1}


def test_without_a_cache_each_time():
    judge, tally = Fickle(), collections.Counter()
    list(Guard().critiques(judge, [ONE, ONE], ["a", "a"], tally))
    assert (len(judge.asked), tally) == (2, {"judge_calls": 2})


def test_a_line_cut_at_any_byte_is_not_there_and_harms_no_other(path):
    whole = CritiqueCache(path, "a")
    whole.put(ONE, "a", SAID)
    first = path.read_bytes()
    whole.put(ONE, "b", SAID)
    both = path.read_bytes()
    for cut in range(len(first), len(both)):
        path.write_bytes(both[:cut])
        cache = CritiqueCache(path, "a")
        assert cache.get(ONE, "a") == SAID
        assert cache.get(ONE, "b") is None
        cache.put(ONE, "c", Critique("New."))
        for reader in (cache, CritiqueCache(path, "a")):
            assert reader.get(ONE, "a") == SAID
            assert reader.get(ONE, "c") == Critique("New.")


def test_a_flipped_bit_is_noticed(path):
    cache = CritiqueCache(path, "a")
    cache.put(ONE, "a", SAID)
    cache.put(ONE, "b", SAID)
    whole = path.read_bytes()
    place = whole.index(b"wrong")
    path.write_bytes(whole[:place] + b"W" + whole[place + 1 :])
    for reader in (cache, CritiqueCache(path, "a")):
        assert reader.get(ONE, "a") is None
        assert reader.get(ONE, "b") == SAID


@pytest.mark.parametrize(
    "rubbish",
    [b"[]\n", b"\xff\n", b"\n", b'{"key": 1, "checksum": 2}\n', b"x" * (MAX_LINE + 9) + b"\n"],
)
def test_rubbish_between_lines(path, rubbish):
    cache = CritiqueCache(path, "a")
    cache.put(ONE, "a", SAID)
    with open(path, "ab") as file:
        file.write(rubbish)
    cache.put(ONE, "b", SAID)
    assert CritiqueCache(path, "a").get(ONE, "b") == SAID
    assert len(CritiqueCache(path, "a")) == 2


def test_other_phases_see_what_was_written_since(path):
    early, late = CritiqueCache(path, "a"), CritiqueCache(path, "a")
    late.put(ONE, "a", SAID)
    assert early.get(ONE, "a") == SAID
    early.put(ONE, "b", Critique("B."))
    assert late.get(ONE, "b") == Critique("B.")


def test_who_may_not_write_reads(path):
    CritiqueCache(path, "a").put(ONE, "a", SAID)
    before = path.read_bytes()
    reader = CritiqueCache(path, "a", writes=False)
    reader.put(ONE, "b", SAID)
    assert reader.get(ONE, "a") == SAID
    assert path.read_bytes() == before


def test_another_judge_level_or_setting_is_another_identity(tmp_path):
    def identity(name="mine:make", level="where", own="mine", given=None, **about):
        return identity_of(types.SimpleNamespace(name=own, **about), name, level, given)

    assert identity() == identity()
    others = [
        identity(name="other:make"),
        identity(level="what"),
        identity(own="other"),
        identity(settings={"model": "large"}),
        identity(settings={"model": "small"}),
        identity(given={"model": "small"}),
        identity(given={"model": "small", "stop": ["a"]}),
        identity(given={"model": {"small": None}}),
    ]
    assert len({identity(), *others}) == 9
    assert identity(given={"a": 1, "b": 2}) == identity(given={"b": 2, "a": 1})


def test_what_a_judge_is_made_with_is_not_written(path):
    identity = identity_of(types.SimpleNamespace(name="mine"), "a:b", "where", {"key": "sk-123"})
    CritiqueCache(path, identity).put(ONE, "a", SAID)
    assert "sk-123" not in identity
    assert b"sk-123" not in path.read_bytes()


def test_a_changed_program_is_another_judge(tmp_path, monkeypatch):
    def identity(code):
        (tmp_path / "mine.py").write_text(code)
        scope = {"__name__": "mine"}
        exec(compile(code, str(tmp_path / "mine.py"), "exec"), scope)
        module = types.ModuleType("mine")
        module.__file__ = str(tmp_path / "mine.py")
        monkeypatch.setitem(__import__("sys").modules, "mine", module)
        return identity_of(scope["Mine"](), "mine:Mine", "where")

    one = "class Mine:\n    name = 'mine'\n"
    assert identity(one) == identity(one)
    assert identity(one) != identity(one + "    words = 3\n")


def test_a_folder_that_is_gone_is_not_made_again(path):
    cache = CritiqueCache(path, "a")
    cache.put(ONE, "3", Critique("Yes."))
    path.parent.rename(path.parent.with_name("elsewhere"))
    assert cache.get(ONE, "3") is None
    cache.put(ONE, "4", Critique("No."))
    assert not path.parent.exists()
