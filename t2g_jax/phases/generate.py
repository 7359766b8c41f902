"""`t2g generate`: a trained policy answers; critique and span rewards are shown in colour."""

from __future__ import annotations

import os

import rich.console
from rich.text import Text

from t2g_jax.config import Config, Method
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, attempt
from t2g_jax.phases.samples import sample_of
from t2g_jax.phases.span_rewards import RewardModel
from t2g_jax.phases.workspace import REWARD_MODEL
from t2g_jax.report.terminal import token_line
from t2g_jax.sampling.generate import generate

EXAMPLES = 3
"""Test examples that are answered without a prompt."""


def run(
    config: Config, workdir: str | os.PathLike[str], method: Method | str, prompt: str | None
) -> None:
    """Prints answers of a phase's policy.

    Args:
      method: whose policy: a method, or "sft".
      prompt: what to answer; None: a few test examples, with the judge's critique.
    """
    context = Context.open(config, workdir)
    console = rich.console.Console(highlight=False)
    params = context.params(method)
    trained = context.workspace.is_complete(REWARD_MODEL)
    model = RewardModel.load(context) if trained else None
    key = context.key("generate")
    if prompt is not None:
        tokens = context.tokenizer.render([{"role": "user", "content": prompt}])
        (completion,) = generate(
            params,
            [tokens],
            key,
            config=context.model,
            sampling=context.sampling,
            mesh=context.mesh,
            batch_size=1,
            context_length=config.model.context_length,
        )
        _print(console, "Answer", context.tokenizer.decode(completion.tokens.tolist()))
        if model is not None:
            (critique,) = model.critiques([(tokens, completion.tokens)])
            _print(console, "Critique (predicted)", context.tokenizer.decode(critique))
        return
    examples = list(context.task.split("test"))[:EXAMPLES]
    prompts = [context.prompt(example) for example in examples]
    for turn in attempt(context, params, examples, prompts, key, batch_size=len(examples)):
        _show(console, context, model, turn)


def _show(
    console: rich.console.Console, context: Context, model: RewardModel | None, turn: Turn
) -> None:
    answer = (turn.prompt, turn.completion.tokens)
    predicted = written = None
    if model is not None:
        (predicted,) = model.rewards([answer])
        written = context.tokenizer.decode(model.critiques([answer])[0])
    sample = sample_of(
        context, turn, title="", predicted=predicted, predicted_critique=written
    )
    console.rule()
    _print(console, "Prompt", sample.prompt)
    shown = "predicted" if model is not None else "true"
    console.print(Text(f"Answer ({shown} span rewards)", style="bold"))
    console.print(token_line(sample.tokens, shown))
    _print(console, "Critique of the judge", sample.critique)
    if sample.predicted_critique is not None:
        _print(console, "Critique of the reward model", sample.predicted_critique)
    console.print(Text(f"Reward {sample.reward:.1f}", style="bold"))


def _print(console: rich.console.Console, title: str, text: str) -> None:
    console.print(Text(title, style="bold"))
    console.print(Text(text))
