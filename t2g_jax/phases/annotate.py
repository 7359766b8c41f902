"""Annotation: completions of the warm start, critiqued, their quotes turned into token spans.

Writes a TFDS dataset with the splits "train" and "held_out" (other prompts). Every judged completion
goes into a journal at once, so a run that is stopped continues where it was; what cannot be used goes
to quarantine.jsonl with the reason.
"""

from __future__ import annotations

import os
import time
from typing import Any

import jax

from t2g_jax.config import Config, config_hash
from t2g_jax.data.dataset import write_dataset
from t2g_jax.data.journal import Journal, Quarantine
from t2g_jax.data.records import AnnotationRecord, validate
from t2g_jax.errors import T2GError
from t2g_jax.judges.base import Critique, JudgeError
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, attempt, critique
from t2g_jax.phases.workspace import ANNOTATE
from t2g_jax.report.terminal import PhaseProgress
from t2g_jax.spans import align, to_token_spans


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Annotates `annotate.prompts` × `samples_per_prompt` completions; returns the summary."""
    context = Context.open(config, workdir)
    workspace, settings = context.workspace, config.annotate
    folder = workspace.phase(ANNOTATE)
    policy = context.params()
    batches = -(-settings.prompts // settings.batch_size)
    began = time.monotonic()
    with (
        Journal(folder / "journal.jsonl") as journal,
        Quarantine(folder / "quarantine.jsonl") as quarantine,
        PhaseProgress(ANNOTATE, settings.prompts * settings.samples_per_prompt) as progress,
    ):
        settled = journal.done | quarantine.ids
        for batch in range(batches):
            examples = context.train_examples(ANNOTATE, batch, settings.batch_size)
            examples = examples[: settings.prompts - batch * settings.batch_size]
            drawn = [
                (f"{batch}-{i}-{s}", example)
                for i, example in enumerate(examples)
                for s in range(settings.samples_per_prompt)
            ]
            if all(id in settled for id, _ in drawn):
                continue
            # A batch is sampled whole, so that its completions do not depend on where a run stopped.
            turns = attempt(
                context,
                policy,
                [example for _, example in drawn],
                [context.prompt(example) for _, example in drawn],
                jax.random.fold_in(context.key(ANNOTATE), batch),
                batch_size=settings.batch_size * settings.samples_per_prompt,
            )
            for (id, _), turn in zip(drawn, turns, strict=True):
                if id in settled:
                    continue
                try:
                    record = annotated(context, id, turn, critique(context, turn))
                    validate(record)
                    journal.append(record.to_json())
                except T2GError as error:
                    quarantine.add(id, str(error), {"completion": turn.text})
            progress.update(len(journal) + len(quarantine), quarantined=len(quarantine))
        records = [AnnotationRecord.from_example(entry) for entry in journal]
        failures = dict(quarantine.counts)

    prompts = sorted({record.prompt_id for record in records})
    held_out = set(prompts[: round(len(prompts) * settings.held_out)])
    splits = {
        "train": [record for record in records if record.prompt_id not in held_out],
        "held_out": [record for record in records if record.prompt_id in held_out],
    }
    facts = {"judge": context.judge.name, "config": config_hash(config)}
    write_dataset(
        workspace.dataset,
        splits,
        name="annotations",
        description=f"Completions of {config.name} with critiques and span rewards.",
        metadata=facts,
    )
    unaligned = sum(len(record.unaligned) for record in records)
    quotes = sum(len(record.span_rewards) for record in records) + unaligned
    return workspace.complete(
        ANNOTATE,
        {
            "seconds": time.monotonic() - began,
            "tokens_trained": 0,
            "tokens_generated": sum(record.completion_tokens.size for record in records),
            "records": {split: len(items) for split, items in splits.items()},
            "accuracy": sum(record.correct for record in records) / len(records),
            "quotes": quotes,
            "unaligned": unaligned,
            "quarantined": failures,
        },
    )


def annotated(
    context: Context, id: str, turn: Turn, feedback: Critique | JudgeError
) -> AnnotationRecord:
    """The record of a judged completion.

    Raises:
      T2GError: the judge gave no critique.
    """
    if isinstance(feedback, JudgeError):
        raise T2GError(f"judge: {feedback.reason}")
    tokens = turn.completion.tokens
    alignment = align(turn.text, feedback.quotes)
    offsets = context.tokenizer.offsets(tokens.tolist())
    spans = [span for span in to_token_spans(alignment.spans, offsets) if span.start < span.end]
    return AnnotationRecord(
        id=id,
        prompt_id=turn.example.id,
        prompt=turn.example.prompt,
        prompt_tokens=turn.prompt,
        completion=turn.text,
        completion_tokens=tokens,
        completion_logprobs=turn.completion.logprobs,
        critique=feedback.text,
        judge=context.judge.name,
        reward=turn.score.reward,
        correct=turn.score.correct,
        span_starts=[span.start for span in spans],
        span_ends=[span.end for span in spans],
        span_rewards=[span.reward for span in spans],
        unaligned=tuple(f"{item.quote.text}: {item.reason}" for item in alignment.unaligned),
    )
