import math

import pytest

from t2g_jax.report.collapse import PLATEAU, WINDOW, Watch, collapses

HEALTHY = {
    "entropy": 0.8,
    "completion_tokens": 60.0,
    "cut_off": 0.05,
    "ratio": 1.0,
    "kl_sampler_trainer": 1e-9,
    "accuracy": 0.3,
}


def log(*values, steps=30, name=None, at=15):
    """A log that is healthy until step `at`, and then `name` has this value."""
    lines = [{"step": step, "phase": "grpo", **HEALTHY} for step in range(1, steps + 1)]
    for value in values:
        for line in lines[at - 1 :]:
            line[name] = value
    return lines


def kinds(lines, **options):
    return [sign.kind for sign in collapses(lines, **options)]


def test_a_healthy_run_shows_no_signs():
    assert collapses(log(), floor=0.125) == ()
    assert collapses([]) == ()
    assert collapses([{"step": step, "loss": 1.0} for step in range(40)], floor=0.1) == ()


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("entropy", 0.02, "entropy", "entropy fell from 0.8 to 0.02 nats"),
        ("completion_tokens", 3.0, "length", "shrank from 60 to 3 tokens"),
        ("cut_off", 0.7, "cut off", "70% of completions reach the length limit, 5% at first"),
        ("ratio", 40.0, "ratio", "ratio is 40 on average"),
        ("ratio", 0.1, "ratio", "ratio is 0.1 on average"),
        ("kl_sampler_trainer", 0.4, "sampler", "0.4 nats apart"),
        ("accuracy", 0.12, "floor", "fell from 30.0% to 12.0%, where the floor is: 12.5%"),
        ("accuracy", 0.0, "floor", "fell from 30.0% to 0.0%"),
    ],
)
def test_each_sign_is_told_once_when_most_of_a_window_shows_it(name, value, kind, words):
    (sign,) = collapses(log(value, name=name), floor=0.125, floor_policy="copy the input")
    assert sign.kind == kind
    assert sign.step == 15 + WINDOW // 2
    assert words in sign.text
    assert ("copy the input" in sign.text) == (kind == "floor")
    assert "question" not in sign.text  # which such a policy may well read


def bad(steps=40, **values):
    """A log that shows something from the first step on."""
    line = {**HEALTHY, "equal_groups": 0.5, **values}
    return [{"step": step, **line} for step in range(1, 1 + steps)]


@pytest.mark.parametrize(
    ("values", "kind", "step", "words"),
    [
        ({"equal_groups": 1.0}, "equal", WINDOW, "in no group did rewards differ"),
        ({"formatted": 0.0}, "unformatted", WINDOW, "has the form that is scored"),
        ({"cut_off": 1.0}, "cut off", WINDOW, "Raise sampling.max_new_tokens"),
        ({"accuracy": 0.0}, "nothing right", WINDOW + PLATEAU, "no first attempt was right"),
    ],
)
def test_what_teaches_nothing_is_said_early(values, kind, step, words):
    (sign,) = collapses(bad(**values))
    assert (sign.kind, sign.step) == (kind, step)
    assert words in sign.text


def test_groups_may_become_equal_later():
    lines = bad()
    for line in lines[1:20]:  # as in 19 of 20 steps
        line["equal_groups"] = 1.0
    assert [sign.step for sign in collapses(lines)] == [2 * WINDOW]
    lines[3]["equal_groups"] = lines[7]["equal_groups"] = 0.9
    assert [sign.step for sign in collapses(lines)] == [13]


@pytest.mark.parametrize("values", [{"span_reward": 0.1}, {"accuracy": 0.95}])
def test_equal_groups_do_not_matter_everywhere(values):
    assert collapses(bad(equal_groups=1.0, **values)) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("entropy", 0.1),
        ("completion_tokens", 16.0),
        ("completion_tokens", 600.0),
        ("cut_off", 0.4),
        ("ratio", 1.8),
        ("kl_sampler_trainer", 0.01),
        ("accuracy", 0.2),
        ("entropy", math.nan),
    ],
)
def test_less_is_no_sign(name, value):
    assert kinds(log(value, name=name), floor=0.125) == []


def test_one_odd_step_is_no_sign():
    lines = log()
    lines[20] |= {"entropy": 0.0, "ratio": 1e6, "completion_tokens": 1.0, "accuracy": 0.0}
    assert kinds(lines, floor=0.125) == []


def test_low_entropy_is_no_sign_once_the_task_is_solved():
    lines = log(0.02, name="entropy")
    for line in lines[10:]:
        line["accuracy"] = 0.95
    assert kinds(lines, floor=0.125) == []


def test_a_run_that_ends_up_at_the_floor_and_one_that_passes_it():
    def rising(values):
        return [{"step": i, "accuracy": value} for i, value in enumerate(values)]

    start = [0.0] * WINDOW
    stays = rising(start + [0.115, 0.135] * (PLATEAU // 2))
    (sign,) = collapses(stays, floor=0.125)
    assert (sign.kind, sign.step) == ("floor", WINDOW + PLATEAU - 1)
    assert f"stood at 13.5% for {PLATEAU} steps" in sign.text
    passes = rising(start + [0.01 * step for step in range(40)])
    assert collapses(passes, floor=0.125) == ()
    assert collapses(stays) == ()  # no floor is known


def test_a_watch_tells_what_is_new():
    lines, watch = log(0.02, name="entropy"), Watch(floor=0.125)
    told = {line["step"]: watch.look(line) for line in lines}
    assert [step for step, signs in told.items() if signs] == [17]
    assert tuple(told[17]) == collapses(lines, floor=0.125)


def test_the_reward_of_a_task_that_only_grades():
    fell = [{"step": i, "reward": 1.0 if i <= 5 else 0.5} for i in range(1, 40)]
    (sign,) = collapses(fell)
    assert (sign.kind, sign.step) == ("reward", 25)
    assert sign.text.startswith("the reward fell from 1 to 0.5")
    swings = [{"step": i, "reward": float(i % 2)} for i in range(1, 60)]
    assert collapses(swings) == ()
    with_accuracy = [line | {"accuracy": 0.5} for line in fell]
    assert "reward" not in {sign.kind for sign in collapses(with_accuracy)}
