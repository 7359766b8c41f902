"""The reward model: starts from the warm start, learns to write critiques and to mark spans.

p(critique, spans | x, y) = p(critique | x, y) · p(spans | x, y[, critique]); Text2Grad,
arXiv 2505.22338, with a classification head in place of decoded JSON. Reads the annotations; writes
the reward model, and of each class its precision, recall, F1 and calibration on held-out prompts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2g_jax.config import Config, Labels
from t2g_jax.data.dataset import DatasetError, Records, load_dataset
from t2g_jax.data.pipeline import Batches
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.errors import T2GError
from t2g_jax.feedback import span_scores
from t2g_jax.feedback.judgment import token_labels
from t2g_jax.feedback.retokenize import Answer, retokenize, reward_model_context
from t2g_jax.feedback.reward_model import RewardModel, reward_model_row
from t2g_jax.losses import span_targets
from t2g_jax.models import heads
from t2g_jax.models.heads import Params
from t2g_jax.report import learnability
from t2g_jax.run import pretrained, provenance
from t2g_jax.run.context import Context, once, say
from t2g_jax.run.trainer import Experience, UpdatePlan, run_training
from t2g_jax.run.workspace import ANNOTATE, REWARD_MODEL, SFT
from t2g_jax.runtime import hosts
from t2g_jax.spans import TokenSpan, transfer_spans
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import TokenSequence, from_arrays, to_arrays
from t2g_jax.training.terms import NLL, SpanLabels


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains the reward model, unless that is done; returns its summary with the class scores."""
    config = config.including("text2grad")  # which it is for
    try:
        return once(REWARD_MODEL, config, workdir, train, needs=(SFT, ANNOTATE))
    except DatasetError as error:
        folder = Path(workdir) / ANNOTATE
        raise T2GError(
            f"{error}. Or delete {folder / 'dataset'} and {folder / 'complete.json'}, and run "
            "`t2g annotate CONFIG`: it writes them from its journal, and judges nothing again"
        ) from error


def train(context: Context) -> dict[str, Any]:
    """Trains and measures the reward model.

    Raises:
      T2GError: the annotations are not complete.
    """
    settings, rm_context = context.config.reward_model, reward_model_context(context)
    source, held_out = splits(context)
    if settings.labels == "severity":
        for record in (*source, *held_out):
            check_severities(record)
    pretrained.check_critiques(context.config, rm_context.tokenizer)
    size = min(settings.batch_size, len(source))
    # Each process reads and renders its part of a batch, if there are equal parts.
    apart = hosts.count() > 1 and size % hosts.count() == 0
    stream: Batches[list[TokenSequence]] = Batches(
        source,
        batch_size=size,
        seed=context.keys.seed(REWARD_MODEL),
        collate=lambda records: [training_row(context, record, rm_context) for record in records],
        process_index=jax.process_index() if apart else 0,
        process_count=hosts.count() if apart else 1,
    )

    plan = update_plan(context.config, settings.epochs * stream.per_epoch)

    def collect(state, step: int) -> Experience:
        del state
        rows = stream.at(step)
        if apart:
            parts = hosts.gathered_arrays(to_arrays(rows))
            fields = plan.objective.fields
            rows = [row for part in parts for row in from_arrays(part, fields)]
        return Experience(rows)

    params, summary = run_training(
        rm_context,
        REWARD_MODEL,
        starting_params(rm_context),
        collect,
        plan,
    )
    model = RewardModel.of(context, rm_context, params)
    probabilities, labels = marked(model, held_out, settings.batch_size, settings.labels)
    scores = span_scores.class_scores(probabilities, np.sign(labels))
    reliability = span_scores.calibration(probabilities, np.asarray(span_targets(labels)))
    for score, trust in zip(scores, reliability, strict=True):
        about = ", ".join(f"{name} {score[name]:.3g}" for name in ("precision", "recall", "f1"))
        about += f", calibration error {trust['error']:.3g}"
        say(f"{REWARD_MODEL}: {score['label']} tokens: {about}, of {score['support']} held out")
    for warning in learnability.of_reward_model(scores):
        say(f"Warning: {REWARD_MODEL}: {warning}")
    return summary | {
        "class_scores": scores,
        "calibration": reliability,
        "class_weights": list(settings.class_weights),
    }


def splits(context: Context) -> tuple[Records, Records]:
    """The splits "train" and "held_out".

    Raises:
      T2GError: the annotations are not complete, or not those that they were complete with.
    """
    workspace = context.workspace
    source, held_out = (load_dataset(workspace.dataset, name) for name in ("train", "held_out"))

    def is_ours() -> bool:
        found = provenance.of_records({"train": list(source), "held_out": list(held_out)})
        return found == provenance.artifact(workspace, ANNOTATE)

    if not hosts.broadcast_from_primary(is_ours):
        raise DatasetError(f"{workspace.dataset} is not what {ANNOTATE} was complete with")
    return source, held_out


def starting_params(context: Context) -> Params:
    """The warm start with a span-reward head and, with LoRA, fresh adapters."""
    params = heads.add_heads(
        context.weights.load(), context.model, context.keys.key("span_head"), heads=("span_head",)
    )
    return context.weights.with_adapters(context.weights.place(params), REWARD_MODEL)


def update_plan(config: Config, steps: int) -> UpdatePlan:
    """How the reward model learns."""
    settings = config.reward_model
    return UpdatePlan(
        optimizer=settings.optimizer,
        objective=Objective((NLL(settings.critique_weight), SpanLabels(settings))),
        steps=steps,
        micro_batches=settings.micro_batches,
    )


def training_row(
    context: Context, record: AnnotationRecord, rm_context: Context | None = None
) -> TokenSequence:
    """The row of an annotated completion, in the tokens of `rm_context` (None: of the policy)."""
    rm_context = context if rm_context is None else rm_context
    answer: Answer = (record.prompt_tokens, record.completion_tokens)
    settings = context.config.reward_model
    labels = labels_of(record, settings.labels)
    if rm_context is not context:
        mine = context.tokenizer.offsets(record.completion_tokens)
        text = context.tokenizer.decode(record.completion_tokens)
        answer, theirs = retokenize(context.prompts, rm_context.prompts, answer)
        spans = transfer_spans(_spans(record), text, mine, theirs)
        labels = _labels(spans, len(theirs), settings.labels)
    critique = rm_context.tokenizer.answer(record.critique)
    return reward_model_row(
        rm_context.tokenizer,
        answer,
        conditioned=settings.critique_conditioned,
        critique=critique,
        labels=labels,
    )


def labels_of(record: AnnotationRecord, how: Labels = "sign") -> np.ndarray:
    """What the reward model learns of each completion token: its reward's sign, or all of it."""
    return _labels(_spans(record), len(record.completion_tokens), how)


def _labels(spans: Sequence[TokenSpan], length: int, how: Labels) -> np.ndarray:
    rewards = token_labels(spans, length)
    return rewards if how == "severity" else np.sign(rewards)


def check_severities(record: AnnotationRecord) -> None:
    """Raises T2GError if a span's reward is no severity: outside [−1, 1]."""
    for reward in record.span_rewards.tolist():
        if abs(reward) > 1:
            raise T2GError(
                f"record {record.id!r}: a span's reward is {reward:g}, but with "
                "reward_model.labels: severity it must lie in [-1, 1]; let the judge scale its "
                "quotes' rewards and annotate again, or set reward_model.labels to sign"
            )


def _spans(record: AnnotationRecord) -> list[TokenSpan]:
    columns = record.span_starts, record.span_ends, record.span_rewards
    return [TokenSpan(*span) for span in zip(*columns, strict=True)]


def marked(
    model: RewardModel,
    records: Sequence[AnnotationRecord],
    batch_size: int,
    how: Labels = "sign",
) -> tuple[np.ndarray, np.ndarray]:
    """The model's probabilities [N, 3] and the records' labels [N] of all completion tokens.

    Completions that the model cannot mark are left out.

    Raises:
      T2GError: a probability is NaN: scores of it would look like those of a model.
    """
    found: list[np.ndarray] = [np.zeros((0, 3))]
    labels: list[np.ndarray] = [np.zeros(0)]
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        answers = [(record.prompt_tokens, record.completion_tokens) for record in batch]
        for record, p in zip(batch, model.probabilities(answers), strict=True):
            if p is not None:
                found.append(p)
                labels.append(labels_of(record, how))
    probabilities = np.concatenate(found)
    if not np.isfinite(probabilities).all():
        broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise T2GError(
            f"the reward model's probabilities of {broken} of {len(probabilities)} held-out tokens "
            "are NaN: it has diverged; train it with a lower reward_model.optimizer.learning_rate"
        )
    return probabilities, np.concatenate(labels)
