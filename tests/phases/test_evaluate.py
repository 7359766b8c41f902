import pytest
import tiny

from t2g_jax.config import METHODS
from t2g_jax.phases import evaluate
from t2g_jax.report.statistics import clustered_interval
from t2g_jax.tasks.base import JudgeError


@pytest.fixture
def play(tiny_context, monkeypatch):
    """play(first, second, …): evaluates a policy whose attempts earn these rewards."""

    def play(*rewards, **values):
        context = tiny.changed(tiny_context, **values)
        asked = []

        def attempt(rollouts, params, examples, prompts, key, *, batch_size, **progress):
            earned = rewards[len(asked)]
            asked.append((examples, prompts, batch_size))
            return [
                tiny.turn(context, "0", example=example, prompt=prompt, reward=reward)
                for example, prompt, reward in zip(examples, prompts, earned, strict=True)
            ]

        monkeypatch.setattr(evaluate, "attempt", attempt)
        return evaluate.evaluate(context, "sft"), asked

    return play


def test_the_numbers(play, tiny_context):
    # Four prompts, two samples each.
    score, asked = play([1, 0, 1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0])
    assert score["correct"] == [[1, 0], [1, 1], [0, 0], [0, 0]]
    assert score["accuracy"] == 3 / 8
    assert score["interval"] == list(clustered_interval([[1, 0], [1, 1], [0, 0], [0, 0]]))
    assert score["second_turn"] == 5 / 8
    assert (score["judge_failures"], score["no_room"]) == (0, 0)
    tests = tiny_context.task.split("test")
    floor = tiny_context.task.floor(tests)
    assert (score["floor"], score["floor_policy"]) == (floor.accuracy, floor.policy)
    assert [example.id for example in asked[0][0]] == [e.id for e in tests for _ in range(2)]
    (_, prompts, _), (retried, longer, _) = asked
    assert [example.id for example in retried] == [asked[0][0][i].id for i in (1, 4, 5, 6, 7)]
    for index, prompt in zip((1, 4, 5, 6, 7), longer, strict=True):
        assert prompt[: len(prompts[index])] == prompts[index]


def test_a_wrong_second_attempt_does_not_undo_a_right_first(play):
    score, _ = play([1] * 8, [])
    assert score["accuracy"] == score["second_turn"] == 1


def test_without_a_critique_there_is_no_second_attempt(play, tiny_context, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    score, _ = play([1, 0, 0, 0, 0, 0, 0, 0], [])
    assert score["second_turn"] == score["accuracy"] == 1 / 8
    assert score["judge_failures"] == 7


def test_without_second_turns_nobody_is_asked(play, tiny_context, monkeypatch):
    monkeypatch.setattr(type(tiny_context.judge), "critique", None)
    score, _ = play([1, 0, 0, 0, 0, 0, 0, 0], [], evaluate__second_turn=False)
    assert (score["accuracy"], score["second_turn"]) == (1 / 8, None)
    assert score["judge"] == {}
    assert "after one critique" not in evaluate.line(score)


def test_what_can_be_learned_from(play):
    score, _ = play([1, 0, 1, 1, 0, 0, 0, 0], [0] * 5)
    assert (score["formatted"], score["cut_off"], score["equal_groups"]) == (1, 0, 3 / 4)
    assert score["judge"] == {"judge_calls": 5}
    score, _ = play([0] * 4, [0] * 4, evaluate__samples_per_prompt=1)
    assert score["equal_groups"] is None


def test_the_warm_start_is_measured_early_and_once(tiny_run, tmp_path, monkeypatch, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    before = tiny.contents(workdir / "sft" / "evaluation.json")
    for phase in ("sft", "grpo"):
        (workdir / phase / "evaluation.json").unlink()
    scores = evaluate.run(config, workdir, only=("sft",))
    assert list(scores) == ["sft"]
    assert tiny.contents(workdir / "sft" / "evaluation.json") == before
    assert "Warning: sft: 0.0% of first attempts are right" in capsys.readouterr().err
    assert not (workdir / "grpo" / "evaluation.json").exists()
    kept = (workdir / "sft" / "evaluation.json").stat().st_mtime_ns
    real, measured = evaluate.evaluate, []
    monkeypatch.setattr(
        evaluate, "evaluate", lambda *given: measured.append(given[1]) or real(*given)
    )
    assert list(evaluate.run(config, workdir)) == ["sft", "grpo"]
    assert measured == ["grpo"]
    assert (workdir / "sft" / "evaluation.json").stat().st_mtime_ns == kept


def test_without_room_there_is_no_second_attempt(play, tiny_context):
    longest = max(
        len(tiny_context.prompts.render(e.prompt)) for e in tiny_context.task.split("test")
    )
    new = tiny_context.config.sampling.max_new_tokens
    score, _ = play([1, 0, 0, 0, 0, 0, 0, 0], [], model__context_length=longest + new)
    assert score["second_turn"] == score["accuracy"] == 1 / 8
    assert (score["judge_failures"], score["no_room"]) == (0, 7)


def test_samples_and_batch_size(play):
    values = {"evaluate__samples_per_prompt": 3, "evaluate__batch_size": 5}
    score, asked = play([1] * 12, [], **values)
    assert score["correct"] == [[1, 1, 1]] * 4
    assert [batch_size for *_, batch_size in asked] == [15, 15]


def test_the_scores_of_all_phases(tiny_run, capsys):
    scores = evaluate.run(tiny_run.config, tiny_run.workdir)
    assert list(scores) == ["sft", *METHODS]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("sft: 0.0% of first attempts right (0.0% to ")
    assert "floor 25.0%, gives one fixed answer for each size" in said[-1]


def test_nothing_is_evaluated_twice(tiny_run, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", None)
    evaluate.run(tiny_run.config, tiny_run.workdir)
