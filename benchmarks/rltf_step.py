"""A whole step of RLTF-SD: attempts, critiques, second attempts, update; against a plain loop."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.measure import Section, compared, in_turns
from benchmarks.twins import Llama, generate, llama
from t2g_jax.config import Config, load_config
from t2g_jax.methods import make_method
from t2g_jax.methods.scores import RowScorer
from t2g_jax.parallel.sharding import batch_sharding, state_shardings
from t2g_jax.phases import sft
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import minibatches
from t2g_jax.tasks.base import Critique
from t2g_jax.training.forward import Need
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update
from t2g_jax.training.terms import DISTILL_WEIGHT

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHOD = "rltf-sd"
CHANGES = (
    "--sft.steps 500 --rltf_sd.prompts_per_step 16 --rltf_sd.group_size 4 --rltf_sd.minibatches 1"
).split()
"""Changes to the quickstart. A short warm start: most attempts are wrong, so that most rows have
two turns, but not all earn the same, so that there is something to learn. One update of all rows,
as in the loop."""


def measure(*, small: bool = False) -> Section:
    turns = 1 if small else 7
    config = (
        load_config(ROOT / "tests/configs/tiny.yaml")
        if small
        else load_config(ROOT / "configs/quickstart.yaml", CHANGES)
    )
    with tempfile.TemporaryDirectory() as folder:
        sft.run(config, folder)
        context = Context.open(config, folder)
        group = config.rltf_sd.group_size
        batches = {"all prompts at once": None, "one prompt after another": group}
        generated: dict[str, list[int]] = {"ours": [], "theirs": []}
        norms: list[float] = []
        taken = {}
        for words, size in batches.items():
            ours = our_step(context, norms)
            theirs = plain_step(context, llama(context.model, context.weights.load()), batch=size)
            taken[words] = in_turns(
                lambda step=ours: generated["ours"].append(step()),
                lambda step=theirs: generated["theirs"].append(step()),
                turns=turns,
                warm_up=2,
            )
        sparing, lavish = our_step(context, norms), our_step(context, [], scores_all=True)
        scored = in_turns(sparing, lavish, turns=turns, warm_up=2)
    if not any(norms):
        raise ValueError("all gradients were 0: no attempt earned more than another")
    settings, model = config.rltf_sd, context.model
    text = f"""
{settings.prompts_per_step} prompts × {settings.group_size} attempts of up to
{config.sampling.max_new_tokens} tokens at 4 × 4 puzzles, {model.layers} layers × {model.width}.
Both start from the same weights and have the same tokenizer, task and programmatic judge; each step
draws other prompts. Tokens generated in a step, on average: {np.mean(generated["ours"]):.0f} by
t2g_jax, {np.mean(generated["theirs"]):.0f} by the loop; norm of t2g_jax's gradient, on average:
{np.mean(norms):.2g}. The loop calls `generate` for all prompts at once, padded on the left, or for
one after another, {group} attempts each. Nothing is computed that nobody reads: the last row is the
same step with all rows scored first, under the warm start for the log, and the distilled ones under
the policy, as a round of several updates or a KL would need it.
"""
    return compared(
        "A whole step of RLTF-SD",
        text,
        *(in_turn.row(f"step; the loop: {words}", "≥ 3 ×") for words, in_turn in taken.items()),
        scored.row("step; against itself, all rows scored first", "> 1 ×"),
        theirs="`generate` + torch update",
    )


def our_step(
    context: Context, norms: list[float], *, scores_all: bool = False
) -> Callable[[], int]:
    """step() → tokens generated; as `run_training` makes one, without log and checkpoints.

    Args:
      norms: gets the norm of the gradient of each step.
      scores_all: also compute what nobody reads: see `measure`.
    """
    method = make_method(METHOD, context)
    plan, mesh = method.plan, context.mesh
    optimizer = make_optimizer(plan.optimizer, plan.steps)
    params = jax.tree.map(jax.numpy.copy, method.params)
    reference = context.weights.frozen(method.params)
    carry = {name: np.float32(value) for name, value in plan.carry.items()}
    state = TrainState.create(params, optimizer, jax.device_put(carry))
    state = jax.device_put(state, state_shardings(state, mesh))
    update = make_update(context.model, plan.objective, optimizer, mesh, state)
    sharding = batch_sharding(mesh, micro_batched=True)
    sharding_of_carry = NamedSharding(mesh, PartitionSpec())
    number = 0

    def step() -> int:
        nonlocal state, number
        collected = method.collect(state, number)
        if scores_all:
            needs = Need.LOGPROBS | Need.ENTROPY
            distilled = [row for row in collected.rows if DISTILL_WEIGHT in row.values]
            RowScorer.of(context)(reference, collected.rows[: -len(distilled) or None], needs)
            RowScorer.of(context)(state.params, distilled, needs)
        if collected.carry is not None:
            new = {name: np.float32(value) for name, value in collected.carry.items()}
            state = state.replace(carry=jax.device_put(new, sharding_of_carry))
        purpose = f"{METHOD}/{number}"
        for batch in minibatches(plan, collected.rows, mesh, context.keys, purpose):
            state, report = update(state, jax.device_put(batch, sharding))
            norms.append(float(report["grad_norm"]))
        number += 1
        return int(collected.metrics["tokens_generated"])

    return step


def plain_step(context: Context, model: Llama, *, batch: int | None = None) -> Callable[[], int]:
    """step() → tokens generated; the method in a loop of `generate` and torch, as one writes it.

    batch: prompts that `generate` gets at once; None: all.
    """
    config: Config = context.config
    settings, tokenizer = config.rltf_sd, context.tokenizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.optimizer.learning_rate, weight_decay=0.0, fused=True
    )
    number = 0

    def attempts(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        size = batch or len(prompts)
        chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [tokens for chunk in chunks for tokens in completed(chunk)]

    def completed(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        left = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        new, stop_ids = config.sampling.max_new_tokens, tokenizer.stop_ids
        out = generate(model, left, new, mask=mask, stop_ids=stop_ids)[:, width:].tolist()
        for i, tokens in enumerate(out):
            ends = [n for n, token in enumerate(tokens, start=1) if token in stop_ids]
            out[i] = tokens[: ends[0]] if ends else tokens
        return out

    def step() -> int:
        nonlocal number
        drawn = context.prompts.train_examples(METHOD, number, settings.prompts_per_step)
        number += 1
        examples = [example for example in drawn for _ in range(settings.group_size)]
        prompts = [context.prompts.render(example.prompt) for example in examples]
        firsts = attempts(prompts)
        texts = [tokenizer.decode(tokens) for tokens in firsts]
        scores = [context.task.score(e, text) for e, text in zip(examples, texts, strict=True)]
        again, asked = [], []
        for i, score in enumerate(scores):
            feedback = None if score.correct else context.judges.critique(examples[i], texts[i])
            if isinstance(feedback, Critique):
                ended = firsts[i][-1] in tokenizer.stop_ids
                opened = tokenizer.next_turn(feedback.text, ended=ended)
                again.append(i)
                asked.append([*prompts[i], *firsts[i], *opened])
        seconds = attempts(asked) if asked else []

        first = np.array([score.reward for score in scores])
        groups = first.reshape(-1, settings.group_size).mean(1).repeat(settings.group_size)
        final = dict.fromkeys(range(len(examples)), 0.0)
        for i, tokens in zip(again, seconds, strict=True):
            final[i] = context.task.score(examples[i], tokenizer.decode(tokens)).reward
        second = np.array(list(final.values()))
        retried = np.isin(np.arange(len(examples)), again)
        seconds_mean = second.sum() / max(retried.sum(), 1)
        rows: list[list[tuple[Sequence[int], float]]] = []  # parts of a row and their advantages
        for i, prompt in enumerate(prompts):
            gain = first[i] + settings.gamma * second[i] - groups[i]
            rows.append([(prompt, 0.0), (firsts[i], gain)])
        for i, prompt, tokens in zip(again, asked, seconds, strict=True):
            opened = prompt[len(prompts[i]) + len(firsts[i]) :]
            rows[i] += [(opened, 0.0), (tokens, second[i] - seconds_mean)]
            gain = settings.distill_coefficient * (second[i] - groups[i])
            rows.append([(prompts[i], 0.0), (tokens, gain)])
        learn(rows)
        return sum(map(len, firsts)) + sum(map(len, seconds))

    def learn(rows: list[list[tuple[Sequence[int], float]]]) -> None:
        width = max(sum(len(part) for part, _ in row) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask, advantages, weight = (torch.zeros(len(rows), width) for _ in range(3))
        for i, row in enumerate(rows):
            start = 0
            for number_of_part, (part, advantage) in enumerate(row):
                here = slice(start, start + len(part))
                tokens[i, here] = torch.tensor(part)
                mask[i, here] = 1
                if number_of_part % 2:  # completions
                    advantages[i, here], weight[i, here] = advantage, 1
                start += len(part)
        logits = model(tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        log_probs = torch.log_softmax(logits, -1)
        own = log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
        ratio = torch.exp(own - own.detach())
        loss = -(ratio * advantages[:, 1:] * weight[:, 1:]).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm)
        optimizer.step()

    return step
