"""How often a run asks its judge: said before it begins, as a judge may cost money and hours."""

from __future__ import annotations

from t2g_jax.config import Config, RolloutConfig
from t2g_jax.judges.custom import OWN_JUDGE
from t2g_jax.phases.samples import chosen, kept_steps
from t2g_jax.run.workspace import ANNOTATE, SFT

EVALUATE = "evaluate"


def judge_calls(config: Config, tests: int | None = None) -> dict[str, int]:
    """Questions to the run's judge by phase, of `t2g run`; phases that ask nothing are left out.

    As many as there are if every attempt is wrong: right ones are criticized by few methods. With a
    cache (see `judges.cache`) equal completions of a prompt are asked about once, so that calls may
    be fewer. With a token budget, what `steps` ask.

    Args:
      tests: test examples; None: as many as there are puzzles.
    """
    calls = {SFT: _warm_start(config)}
    if config.needs_reward_model:
        calls[ANNOTATE] = config.annotate.prompts * config.annotate.samples_per_prompt
    calls |= {method: _method(config.of_method(method)) for method in config.methods}
    if config.evaluate.second_turn:
        tests = config.task.test_size if tests is None else tests
        samples = tests * config.evaluate.samples_per_prompt
        calls[EVALUATE] = (1 + len(config.methods)) * samples
    return {phase: count for phase, count in calls.items() if count}


def announcement(config: Config, tests: int | None = None) -> str:
    """The numbers in a line."""
    calls = judge_calls(config, tests)
    each = ", ".join(f"{phase} {count:,}" for phase, count in calls.items())
    total = sum(calls.values())
    said = f"this run asks the judge ({config.judge.name}) about {total:,} times"
    if not total:
        return said
    unknown = [
        method
        for method in config.methods
        if method in calls and config.of_method(method).token_budget is not None
    ]
    if not unknown:
        return f"{said} at most: {each}"
    return (
        f"{said}: {each}; of {', '.join(unknown)} this is what the steps would ask, but the "
        "token_budget ends it: short completions mean more questions, long ones fewer"
    )


def _warm_start(config: Config) -> int:
    """Rows whose first attempt is shown with a critique."""
    sft = config.sft
    if sft.critiques == "task" and config.judge.name != OWN_JUDGE:
        return 0
    share = 1 - (1 - sft.repair_fraction) * (1 - sft.critique_fraction)
    return round(sft.steps * sft.batch_size * share)


def _method(section: RolloutConfig) -> int:
    asked = section.steps * section.critiques_per_step
    if not section.marks_spans:
        return asked
    kept = len(kept_steps(section, section.steps))  # whose labels the report compares
    rows = section.prompts_per_step * section.group_size
    return asked + kept * len(chosen(section, 0, rows))
