"""Whether there is anything to learn from, said before hours are spent: what is amiss, why it
matters, and what to change.

`collapse` watches what a policy becomes; this looks at what it begins with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ENOUGH = 0.999
"""Share from which something holds of all completions."""


def of_warm_start(score: Mapping[str, Any]) -> tuple[str, ...]:
    """What is amiss with the policy that all methods start from, by its evaluation.

    Args:
      score: "accuracy", "formatted", "cut_off" and, if it was measured, "equal_groups" and
        "second_turn": shares, see `phases.evaluate.evaluate`.
    """
    return tuple(_of_warm_start(score))


def of_reward_model(scores: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What is amiss with the annotations, by the class scores: "label" and "support" of each."""
    none = [str(score["label"]) for score in scores if not score["support"]]
    if not none:
        return ()
    return (
        f"no held-out token is {' or '.join(none)}: whether the reward model marks such tokens "
        "rightly is not known, and it may never have seen one. See to it that the judge quotes "
        "both good and poor phrases; raise annotate.prompts or annotate.held_out, or vary what is "
        "annotated with annotate.temperatures",
    )


def _of_warm_start(score: Mapping[str, Any]) -> Iterator[str]:
    def share(name: str) -> float:
        value = score.get(name)
        return math.nan if value is None else float(value)

    if share("cut_off") >= ENOUGH:
        yield (
            "all first attempts are cut off at sampling.max_new_tokens: an answer that does not "
            "end is never right, and its length is never learned. Raise sampling.max_new_tokens "
            "(and model.context_length), or teach shorter answers with more sft.steps"
        )
    if share("formatted") == 0:
        yield (
            "no first attempt has the form that is scored (\\boxed{} in a puzzle): every reward is "
            "the same, so there is nothing to compare. Teach the form with more sft.steps, or let "
            "the prompt ask for it (of a puzzle, task.prompt_style: full)"
        )
    if share("accuracy") == 0:
        second = share("second_turn")
        after = "" if math.isnan(second) else f", and {second:.1%} after one critique"
        yield (
            f"0.0% of first attempts are right{after}: methods that compare rewards have next to "
            "nothing to learn from. Train the warm start longer (sft.steps), choose an easier task "
            "(task.preset, task.settings), or begin with a better model (model.pretrained)"
        )
    elif share("equal_groups") >= ENOUGH:
        yield (
            "no prompt has samples whose rewards differ: methods that compare a prompt's samples "
            "have nothing to learn from. Raise sampling.temperature or the method's group_size, or "
            "choose a task that is neither always solved nor never (task.settings)"
        )
