"""The reward model: starts from the warm start, learns to write critiques and to mark spans.

p(critique, spans | x, y) = p(critique | x, y) · p(spans | x, y[, critique]); Text2Grad,
arXiv 2505.22338, with a classification head in place of decoded JSON. Reads the annotations; writes
the reward model, and its precision, recall and F1 per class on held-out prompts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2g_jax.config import Config
from t2g_jax.data.dataset import load_dataset
from t2g_jax.data.pipeline import batches
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.models import heads
from t2g_jax.phases.context import Context
from t2g_jax.phases.span_rewards import RewardModel, labels, reward_model_row
from t2g_jax.phases.training import Collected, Learning, run_training
from t2g_jax.phases.workspace import REWARD_MODEL, SFT
from t2g_jax.training.batch import Row
from t2g_jax.training.objective import Objective

CLASSES = ("poor", "neutral", "good")


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains the reward model; returns its summary with the class scores."""
    context = Context.open(config, workdir)
    settings = config.reward_model
    params = heads.add_heads(
        context.params(SFT), context.model, context.key("span_head"), heads=("span_head",)
    )
    source = load_dataset(context.workspace.dataset, "train")
    stream = batches(
        source,
        batch_size=min(settings.batch_size, len(source)),
        seed=context.seed(REWARD_MODEL),
        collate=lambda records: [training_row(context, record) for record in records],
    )

    def collect(state, step: int) -> Collected:
        del state
        stream.seek(step)
        return Collected(next(stream))

    learning = Learning(
        optimizer=settings.optimizer,
        objective=Objective(
            nll_coefficient=settings.critique_weight,
            span_coefficient=settings.span_weight,
            class_weights=settings.class_weights,
        ),
        fields=("nll_weight", "span_weight", "span_labels"),
        steps=settings.epochs * stream.batches_per_epoch,
        micro_batches=settings.micro_batches,
    )
    summary = run_training(context, REWARD_MODEL, context.placed(params), collect, learning)
    # Its own scores are measured as they will be used: through the artifact.
    context.workspace.complete(REWARD_MODEL, summary)
    held_out = load_dataset(context.workspace.dataset, "held_out")
    scores = class_scores(RewardModel.load(context), list(held_out))
    return context.workspace.complete(REWARD_MODEL, summary | {"class_scores": scores})


def training_row(context: Context, record: AnnotationRecord) -> Row:
    """The row of an annotated completion."""
    tokenizer = context.tokenizer
    return reward_model_row(
        context,
        record.prompt_tokens,
        record.completion_tokens,
        critique_tokens=[*tokenizer.encode(record.critique), tokenizer.end_id],
        span_labels=record_labels(record),
    )


def record_labels(record: AnnotationRecord) -> np.ndarray:
    """−1, 0 or +1 for each completion token: the sign of its reward."""
    spans = zip(record.span_starts, record.span_ends, record.span_rewards)
    return np.sign(labels(list(spans), len(record.completion_tokens)))


def class_scores(
    model: RewardModel, records: Sequence[AnnotationRecord]
) -> list[dict[str, float]]:
    """Precision, recall, F1 and support of each class over all completion tokens."""
    answers = [(record.prompt_tokens, record.completion_tokens) for record in records]
    predicted = np.concatenate([p.argmax(-1) for p in model.probabilities(answers)])
    true = np.concatenate([record_labels(record) for record in records]).astype(int) + 1
    scores = []
    for index, label in enumerate(CLASSES):
        hits = int(np.sum((predicted == index) & (true == index)))
        claimed, support = int(np.sum(predicted == index)), int(np.sum(true == index))
        precision, recall = hits / max(claimed, 1), hits / max(support, 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        scores.append(
            {"label": label, "precision": precision, "recall": recall, "f1": f1, "support": support}
        )
    return scores
