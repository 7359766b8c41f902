"""Who completes prompts: the devices that train, or whatever else keeps to the protocol."""

import dataclasses

import numpy as np

from t2g_jax.rollouts.attempts import first_attempts
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.episodes import play
from t2g_jax.sampling.generate import Completion


class Knowing:
    """An engine that has the answers, and is wrong about each other one."""

    def __init__(self, context):
        rendered = context.prompts.render
        self.tokenizer = context.tokenizer
        self.answers = {
            tuple(rendered(example.prompt)): context.task.solve(example)
            for example in context.task.split("train")
        }
        self.asked = []

    def complete(self, params, prompts, key, *, sampling, batch_size):
        self.asked.append((params, len(prompts), sampling, batch_size))
        found = []
        for i, prompt in enumerate(prompts):
            text = self.answers.get(tuple(prompt), "better") if i % 2 == 0 else "no"
            tokens = np.array(self.tokenizer.answer(text), np.int32)
            nothing = np.zeros(len(tokens), np.float32)
            found.append(Completion(tokens, nothing, nothing, ended=True))
        return found


def test_attempts_are_those_of_any_engine(tiny_context):
    engine = Knowing(tiny_context)
    rollouts = dataclasses.replace(Rollouts.of(tiny_context), engine=engine)
    config = dataclasses.replace(tiny_context.config.grpo, prompts_per_step=3, group_size=2)
    turns = first_attempts(rollouts, {"decoder": "elsewhere"}, config, "grpo", 0)
    assert [turn.correct for turn in turns] == [True, False] * 3
    assert turns[1].text == "no"
    assert engine.asked == [({"decoder": "elsewhere"}, 6, tiny_context.sampling, 6)]
    rollouts.watch.lap()


def test_so_are_episodes(tiny_context):
    engine = Knowing(tiny_context)
    rollouts = dataclasses.replace(Rollouts.of(tiny_context), engine=engine)
    config = dataclasses.replace(tiny_context.config.rltf_sd, prompts_per_step=3, group_size=2)
    episodes, metrics = play(rollouts, {}, config, "rltf-sd", 0, turns=2)
    assert [len(episode.turns) for episode in episodes] == [1, 2] * 3
    assert [count for _, count, *_ in engine.asked] == [6, 3]
    assert metrics["accuracy"] == 0.5
    rollouts.watch.lap()
