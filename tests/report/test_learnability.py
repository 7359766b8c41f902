"""What is amiss with a start, before anything is built on it."""

import pytest

from t2g_jax.report.learnability import of_reward_model, of_warm_start

SOUND = {
    "accuracy": 0.05,
    "formatted": 0.9,
    "cut_off": 0.1,
    "equal_groups": 0.8,
    "second_turn": 0.4,
}


@pytest.mark.parametrize(
    "score", [SOUND, {"accuracy": 0.1, "formatted": 0.2, "cut_off": 0.9}, {**SOUND, "accuracy": 1}]
)
def test_a_sound_start(score):
    assert of_warm_start(score) == ()


@pytest.mark.parametrize(
    ("changes", "what", "why", "remedy"),
    [
        ({"accuracy": 0.0}, "0.0% of first attempts are right, and 40.0%", "compare", "sft.steps"),
        (
            {"accuracy": 0.0, "second_turn": None},
            "0.0% of first attempts are right: ",
            "compare",
            "task.settings",
        ),
        ({"equal_groups": 1.0}, "no prompt has samples whose rewards differ", "compare", "group"),
        ({"cut_off": 1.0}, "all first attempts are cut off", "never right", "max_new_tokens"),
    ],
)
def test_what_why_and_what_to_change(changes, what, why, remedy):
    (warning,) = of_warm_start(SOUND | changes)
    assert warning.startswith(what)
    assert why in warning
    assert remedy in warning


def test_all_of_it_at_once():
    score = {"accuracy": 0, "formatted": 0, "cut_off": 1, "equal_groups": 1, "second_turn": 0}
    assert len(of_warm_start(score)) == 3
    assert "\\boxed{}" in "".join(of_warm_start(score))


def test_a_class_without_held_out_tokens():
    scores = [{"label": label, "support": n} for label, n in (("poor", 9), ("neutral", 0))]
    assert of_reward_model(scores[:1]) == ()
    (warning,) = of_reward_model(scores)
    assert warning.startswith("no held-out token is neutral: ")
    assert "annotate.prompts" in warning
