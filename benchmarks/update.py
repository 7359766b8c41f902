"""One policy update: forward, PPO loss, backward, clipping, AdamW; against torch in eager mode."""

from __future__ import annotations

import jax
import numpy as np
import torch

from benchmarks.measure import Section, compared, in_turns
from benchmarks.twins import Llama, shape, twins
from t2g_jax.config import MeshConfig, OptimizerConfig, PolicyConfig
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.training.batch import Batch, micro_batches
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update
from t2g_jax.training.terms import (
    ADVANTAGES,
    OLD_LOGPROBS,
    POLICY_WEIGHT,
    SAMPLER_LOGPROBS,
    PolicyGradient,
)

OPTIMIZER = OptimizerConfig(learning_rate=3e-4)


def measure(*, small: bool = False) -> Section:
    rows, length, turns = (2, 8, 1) if small else (32, 128, 9)
    config = shape(small=small)
    params, model = twins(config)
    batch = policy_batch(rows, length, config.vocab_size)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    optimizer = make_optimizer(OPTIMIZER, updates=1000)
    state = TrainState.create(params, optimizer)
    state = jax.device_put(state, state_shardings(state, mesh))
    update = make_update(config, objective(), optimizer, mesh, state)
    step = torch_update(model, batch)
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}

    def ours():
        nonlocal state
        state, report = update(state, micro_batches(batch, 1))
        losses["ours"].append(float(report["policy_loss"]))
        jax.block_until_ready(state)

    taken = in_turns(ours, lambda: losses["theirs"].append(step()), turns=turns)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    text = f"""
{rows} × {length} tokens, {config.layers} layers × {config.width}, vocabulary {config.vocab_size:,},
float32, the same weights and batch: PPO's clipped loss on the second half of each row, entropy for
the log, gradients clipped by their norm, AdamW (torch's fused one). In {turns + 1} updates the two
losses were never further apart than {apart:.1e}.
"""
    row = taken.row("update", "≥ 1.2 ×", work=rows * length, unit="tokens/s")
    return compared("One policy update", text, row, theirs="torch, eager")


def policy_batch(rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens and advantages, sampled by a uniform policy; the first half is the prompt."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (rows, length)).astype(np.int32)
    weight = np.ones((rows, length), np.float32)
    weight[:, : length // 2] = weight[:, -1] = 0
    logprobs = np.full((rows, length), -np.log(vocabulary), np.float32)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        segment_ids=np.ones((rows, length), np.int32),
        fields={
            POLICY_WEIGHT.name: weight,
            ADVANTAGES.name: rng.normal(size=(rows, length)).astype(np.float32),
            SAMPLER_LOGPROBS.name: logprobs,
            OLD_LOGPROBS.name: logprobs,
        },
    )


def objective() -> Objective:
    """PPO's clipped loss, of a round of several updates."""
    return Objective((PolicyGradient(PolicyConfig(minibatches=2)),))


def torch_update(model: Llama, batch: Batch, *, clip: float = 0.2):
    """step() → loss: the same update, written as one would in torch."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        eps=OPTIMIZER.eps,
        weight_decay=0.0,
        fused=True,
    )
    tokens, targets = (
        torch.tensor(x, dtype=torch.long, device=model.device)
        for x in (batch.tokens, batch.targets)
    )
    weight, advantages, old = (
        torch.tensor(x, device=model.device)
        for x in (batch[POLICY_WEIGHT], batch[ADVANTAGES], batch[OLD_LOGPROBS])
    )

    def step() -> float:
        log_probs = torch.log_softmax(model(tokens, use_cache=False).logits.float(), -1)
        ratio = torch.exp(log_probs.gather(-1, targets[..., None])[..., 0] - old)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
        loss = (surrogate * weight).sum() / weight.sum()
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            (entropy * weight).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        return loss.item()

    return step
