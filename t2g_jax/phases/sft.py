"""Warm start: demonstrations teach the format, repaired ones the use of feedback.

Reads the task; writes the initial policy. Each row is a conversation x₀, y₀ or x₀, y₀, critique, y₁
with y₀ a demonstration, such as a careless solver's, a critique by the task's own program (see
`sft.critiques`) and y₁ right, as far as the task has them; the policy learns the assistant's turns.
In some, if the config says so, it is asked for the critique and learns that.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from t2g_jax.config import Config
from t2g_jax.feedback.reward_model import critique_request
from t2g_jax.models.heads import Params
from t2g_jax.phases.evaluate import first_look
from t2g_jax.report import learnability
from t2g_jax.run import provenance
from t2g_jax.run.context import Context, once, say
from t2g_jax.run.needs import why_no_repairs
from t2g_jax.run.trainer import Experience, UpdatePlan, run_training
from t2g_jax.run.workspace import SFT
from t2g_jax.runtime import hosts
from t2g_jax.tasks.base import Critique, Example, JudgeError, require_capability
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.terms import NLL, NLL_WEIGHT


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains the warm start, unless that is done; returns its summary."""
    return once(SFT, config, workdir, train)


def train(context: Context) -> dict[str, Any]:
    """Trains the warm start; with 0 steps it is the pretrained model as it is."""
    sft = context.config.sft

    def collect(state, step: int) -> Experience:
        del state
        return Experience(demonstrations(context, step))

    def start() -> Params:
        """What learns; nobody else keeps it, so that it is in memory once."""
        params = context.weights.initial()
        if context.config.model.pretrained is not None:
            tell_first_look(first_look(context, params), trains=sft.steps > 0)
        return params

    if sft.steps == 0:  # the pretrained model is the warm start
        start()
        made = hosts.broadcast_from_primary(lambda: provenance.made(context.workspace, SFT))
        return {
            **{"seconds": 0.0, "tokens_trained": 0, "tokens_generated": 0},
            **{"lora_rank": 0, "step": 0, "fingerprint": provenance.of_values(made["bases"])},
            "made": made,
        }
    _, summary = run_training(context, SFT, start(), collect, update_plan(context.config))
    return summary


def tell_first_look(found: dict[str, Any], *, trains: bool) -> None:
    """What the pretrained model is like; with nothing to train, what is amiss with it, too."""
    say(
        f"{SFT}: the pretrained model {first_impression(found)}, {found['cut_off']:.0%} are cut off"
    )
    for warning in () if trains else learnability.of_warm_start(found):
        say(f"Warning: {SFT}: {warning}")


def first_impression(found: dict[str, Any]) -> str:
    """What its answers are worth, in words."""
    if found["accuracy"] is None:
        return f"earns {found['reward']:.3g} on average for {found['count']} test prompts"
    said = f"answers {found['accuracy']:.0%} of {found['count']} test prompts rightly"
    if found["formatted"] is None:
        return said
    return f"{said}; {found['formatted']:.0%} have the form that is scored"


def update_plan(config: Config) -> UpdatePlan:
    """How the warm start learns."""
    return UpdatePlan(
        optimizer=config.sft.optimizer,
        objective=Objective((NLL(),)),
        steps=config.sft.steps,
        micro_batches=config.sft.micro_batches,
    )


def demonstrations(context: Context, step: int) -> list[TokenSequence]:
    """The rows of a step."""
    sft = context.config.sft
    rng = random.Random(context.keys.seed(f"sft/{step}"))
    demonstrate = require_capability(context.task, "demonstrate", needed_by="sft.steps")
    examples = context.prompts.train_examples(
        SFT,
        step,
        sft.batch_size,
        among=sft.examples,
        usable=lambda example: demonstrate(example, random.Random(0)) is not None,
    )
    critics: set[int] = set()
    if sft.critique_fraction:
        critics = {i for i in range(len(examples)) if rng.random() < sft.critique_fraction}
    drafts = [
        (example, demonstrate(example, rng) or "", rng.random() < sft.repair_fraction)
        for example in examples
    ]
    repairs = [i for i, (_, _, repair) in enumerate(drafts) if repair and i not in critics]
    repaired: set[int] = set()
    if why_no_repairs(context.config, context.task) is None:
        wrong = find_improvable(context, [drafts[i][:2] for i in repairs])
        solve = require_capability(context.task, "solve", needed_by="sft.repair_fraction")
        repaired = {
            i
            for i, is_wrong in zip(repairs, wrong, strict=True)
            if is_wrong and solve(drafts[i][0]) is not None
        }
    asked = sorted(critics | repaired)
    feedback: dict[int, Critique | JudgeError] = {}
    if asked:
        critic = context.judges if sft.critiques == "judge" else context.own_judges
        said = critic.critiques([drafts[i][0] for i in asked], [drafts[i][1] for i in asked])
        feedback = dict(zip(asked, said, strict=True))
    return [
        demonstration(context, example, first, feedback.get(i), as_critic=i in critics)
        for i, (example, first, _) in enumerate(drafts)
    ]


def find_improvable(context: Context, attempts: Sequence[tuple[Example, str]]) -> list[bool]:
    """Which attempts may be improved on: all that are not known to be right."""
    texts = [text for _, text in attempts]
    scores = context.scorer.scores(
        [example for example, _ in attempts],
        texts,
        completion_ids=[context.tokenizer.encode(text) for text in texts],
    )
    return [score is None or score.correct is not True for score in scores]


def demonstration(
    context: Context,
    example: Example,
    first: str,
    feedback: Critique | JudgeError | None,
    *,
    as_critic: bool = False,
) -> TokenSequence:
    """A conversation to learn from; every token of the assistant's turns weighs the same.

    After a critique of the first attempt the policy repairs it; or, `as_critic`, it is asked for
    that critique, and learns it alone. It ends with the first attempt where there is no critique,
    the task knows no right answer, or there is no room for what follows.
    """
    tokenizer = context.tokenizer
    learn, given = {NLL_WEIGHT: 1.0}, {NLL_WEIGHT: 0.0}
    attempt = tokenizer.answer(first)
    prompt: tuple[Any, Any] = (context.prompts.render(example.prompt), given)
    parts = [prompt, (attempt, learn)]
    if isinstance(feedback, Critique):
        if as_critic:
            asked = [prompt, (attempt, given), (critique_request(tokenizer, attempt), given)]
            answer: str | None = feedback.text
        else:
            asked = [*parts, (tokenizer.next_turn(feedback.text, ended=True), given)]
            solve = require_capability(context.task, "solve", needed_by="sft.repair_fraction")
            answer = solve(example)
        if answer is not None:
            whole = [*asked, (tokenizer.answer(answer), learn)]
            if context.prompts.has_room([], sum(len(tokens) for tokens, _ in whole)):
                parts = whole
    return TokenSequence.from_parts(*parts)
