"""Annotation: completions of the warm start, critiqued, their quotes turned into token spans.

Writes a TFDS dataset with the splits "train" and "held_out" (other prompts). Every judged
completion goes into a journal at once, so a run that is stopped continues where it was; what cannot
be used goes to quarantine.jsonl with the reason.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t2g_jax.config import Config
from t2g_jax.data.dataset import read_metadata, write_dataset
from t2g_jax.data.journal import Journal, Quarantine
from t2g_jax.data.records import AnnotationRecord, validate
from t2g_jax.errors import T2GError
from t2g_jax.feedback.judgment import Judgment, aligned
from t2g_jax.judges.counts import FAILED, counted
from t2g_jax.judges.guard import name_of
from t2g_jax.printing import one_line
from t2g_jax.report.terminal import PhaseProgress
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import Turn, attempt, unbroken
from t2g_jax.run import provenance
from t2g_jax.run.claim import require_claims
from t2g_jax.run.context import Context, once, say
from t2g_jax.run.workspace import ANNOTATE, SFT, read_json, write_json
from t2g_jax.runtime import files, hosts
from t2g_jax.tasks.base import Critique, Example, JudgeError, prompt_text

EXAMPLES = 5
"""Quotes that were not found and are shown in the report."""

SHOWN = 300
"""Characters kept of a quote that was not found, and of the reason."""


def run(config: Config, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Annotates `prompts` × `samples_per_prompt` completions, unless that is done; the summary."""
    config = config.including("text2grad")  # which they are for
    return once(ANNOTATE, config, workdir, annotate, needs=(SFT,))


def annotate(context: Context) -> dict[str, Any]:
    """Samples, judges, and writes the dataset.

    Raises:
      T2GError: the warm start is not complete, or too little could be judged to hold any of it out.
    """
    began = time.monotonic()
    made = hosts.broadcast_from_primary(lambda: made_from(context))
    records, quarantined = judge_completions(context)
    return hosts.broadcast_from_primary(
        lambda: written(context, records, quarantined, began) | {"made": made}
    )


def made_from(context: Context) -> provenance.Made:
    """What the notes are made from, if they may be gone on with; kept beside them.

    Raises:
      T2GError: those that are there are of another policy.
    """
    folder = context.workspace.phase(ANNOTATE)
    made, path, journal = (
        provenance.made(context.workspace, ANNOTATE),
        folder / "begun.json",
        folder / "journal.jsonl",
    )
    if context.workspace.has_work(ANNOTATE):
        before = read_json(path, made_by="t2g annotate")["made"] if path.exists() else None
        lines = files.read_bytes(journal).count(b"\n") if journal.exists() else 0
        made = provenance.gone_on(made, before, lines, folder)
    write_json(path, {"phase": ANNOTATE, "made": made})
    return made


def written(
    context: Context,
    records: Sequence[AnnotationRecord],
    quarantined: dict[str, int],
    began: float,
) -> dict[str, Any]:
    """Writes the dataset; the summary of the phase."""
    require_claims()
    splits = split(records, context.config.annotate.held_out, quarantined)
    fingerprint = provenance.of_records(splits)
    dataset = context.workspace.dataset
    if dataset.exists() and read_metadata(dataset).get("fingerprint") != fingerprint:
        raise T2GError(
            f"{dataset} was not made from the journal beside it; delete {dataset}, and it is "
            "written again, with nothing judged again"
        )
    if not dataset.exists():  # else a run was stopped just after writing it
        write_dataset(
            dataset,
            splits,
            name="annotations",
            description=f"Completions of {context.config.name} with critiques and span rewards.",
            metadata={"judge": name_of(context.judge), "fingerprint": fingerprint},
        )
    unaligned = [quote for record in records for quote in record.unaligned]
    quotes = sum(len(record.span_rewards) for record in records) + len(unaligned)
    total = len(records) + sum(quarantined.values())
    if quarantined:
        reasons = counted({name.removeprefix("judge: "): n for name, n in quarantined.items()})
        say(
            f"{ANNOTATE}: {sum(quarantined.values())} of {total} critiques unusable: {reasons}; "
            f"{context.workspace.phase(ANNOTATE) / 'quarantine.jsonl'} has them"
        )
    if unaligned:
        say(
            f"{ANNOTATE}: {len(unaligned)} of {quotes} quotes not found in the completion, the "
            f"first: {one_line(unaligned[0], 200)}"
        )
    right = sum(record.correct is True for record in records)
    failed = {name[7:]: n for name, n in quarantined.items() if name.startswith("judge: ")}
    return {
        "fingerprint": fingerprint,
        "seconds": time.monotonic() - began,
        "tokens_trained": 0,
        "tokens_generated": sum(record.completion_tokens.size for record in records),
        "records": {name: len(items) for name, items in splits.items()},
        "accuracy": None if records[0].correct is None else right / len(records),
        "quotes": quotes,
        "unaligned": len(unaligned),
        "unaligned_examples": list(dict.fromkeys(unaligned))[:EXAMPLES],
        "judge": {
            "judge_calls": len(records) + sum(failed.values()) - context.tally["judge_cached"],
            "judge_cached": context.tally["judge_cached"],
            "judge_failures": sum(failed.values()),
            **{f"{FAILED}{reason}": count for reason, count in failed.items()},
        },
        "quarantined": quarantined,
        "prompts_too_long": context.tally["prompts_too_long"],
    }


def judge_completions(context: Context) -> tuple[list[AnnotationRecord], dict[str, int]]:
    """The judged completions in the order they were drawn, and the number quarantined, by reason.

    A batch is sampled whole, so that its completions do not depend on where a run was stopped. Of
    several processes all sample, and the first takes notes; the others return nothing.
    """
    settings, rollouts = context.config.annotate, Rollouts.of(context)
    policy = context.weights.load()
    size = min(settings.batch_size, settings.prompts)
    batches = [
        context.prompts.train_examples(ANNOTATE, batch, size)[: settings.prompts - batch * size]
        for batch in range(-(-settings.prompts // size))
    ]
    with contextlib.ExitStack() as opened:
        of_first: list[Notes] = []

        def open_notes() -> list[str]:
            of_first.append(opened.enter_context(notes_of(context, batches)))
            return sorted(of_first[0].settled)

        settled = set(hosts.broadcast_from_primary(open_notes))
        notes = of_first[0] if of_first else None
        progress = opened.enter_context(
            PhaseProgress(
                ANNOTATE,
                settings.prompts * settings.samples_per_prompt,
                start=len(settled),
                enabled=notes is not None,
            )
        )
        for batch, examples in enumerate(batches):
            for i in range(settings.samples_per_prompt):
                first = batch * size
                ids = [record_id(first + e, i) for e in range(len(examples))]
                if all(id in settled for id in ids):
                    continue
                factor = settings.temperatures[i % len(settings.temperatures)]
                turns = attempt(
                    rollouts,
                    policy,
                    examples,
                    [context.prompts.render(example.prompt) for example in examples],
                    context.keys.at_step(ANNOTATE, batch, i),
                    batch_size=settings.batch_size,
                    sampling=dataclasses.replace(
                        context.sampling, temperature=factor * context.sampling.temperature
                    ),
                )
                unbroken(turns)
                left = [item for item in zip(ids, turns, strict=True) if item[0] not in settled]
                if notes is not None:
                    notes.set_aside([item for item in left if item[1].completion.broken])
                left = [item for item in left if not item[1].completion.broken]
                said = context.judges.critiques(
                    [turn.example for _, turn in left], [turn.text for _, turn in left]
                )
                for (id, turn), critique in zip(left, said, strict=True):
                    if notes is not None:
                        notes.add(id, turn, critique)
            if notes is not None:
                progress.update(len(notes), unusable=len(notes.quarantine))
        return notes.end() if notes is not None else ([], {})


@dataclasses.dataclass
class Notes:
    """What became of each completion: its record in the journal, or why there is none.

    Failures of the judge are settled by its next success: if it is down, the next run asks again.
    """

    context: Context
    journal: Journal
    quarantine: Quarantine
    failed: list[tuple[str, Turn, JudgeError]] = dataclasses.field(default_factory=list)

    @property
    def settled(self) -> set[str]:
        """The ids that need not be judged again."""
        return self.journal.done | self.quarantine.ids

    def set_aside(self, broken: Sequence[tuple[str, Turn]]) -> None:
        """Notes completions that the judge is not asked about, see `Completion`."""
        for id, turn in broken:
            self.quarantine.add(id, "the policy's logits are NaN or Inf", {"completion": turn.text})

    def add(self, id: str, turn: Turn, critique: Critique | JudgeError) -> None:
        require_claims()  # a folder that was moved takes the open files along
        if isinstance(critique, JudgeError):
            self.failed.append((id, turn, critique))
            return
        self._settle_failures()
        record = annotated(self.context, id, turn, aligned(self.context.tokenizer, turn, critique))
        try:
            validate(record)
        except T2GError as error:
            payload = {"completion": turn.text, "details": str(error)}
            self.quarantine.add(id, "not a valid record", payload)
        else:
            self.journal.append(record.to_json())

    def end(self) -> tuple[list[AnnotationRecord], dict[str, int]]:
        """All records, and the number quarantined, by reason."""
        self._settle_failures()
        records = records_of(self.journal, self.context)
        return records, dict(self.quarantine.counts)

    def __len__(self) -> int:
        return len(self.journal) + len(self.quarantine)

    def _settle_failures(self) -> None:
        for id, turn, error in self.failed:
            payload = {"completion": turn.text, "details": error.details}
            self.quarantine.add(id, f"judge: {error.reason}", payload)
        self.failed.clear()


@contextlib.contextmanager
def notes_of(context: Context, batches: Sequence[Sequence[Example]]) -> Iterator[Notes]:
    """The notes in the work directory, to be continued.

    Args:
      batches: the examples that are annotated, in order.

    Raises:
      T2GError: they are damaged or of another run, or another process takes notes there.
    """
    samples = range(context.config.annotate.samples_per_prompt)
    asked = {
        record_id(place, i): example
        for place, example in enumerate(itertools.chain.from_iterable(batches))
        for i in samples
    }
    folder = context.workspace.phase(ANNOTATE)
    with (
        Journal(folder / "journal.jsonl") as journal,
        Quarantine(folder / "quarantine.jsonl") as quarantine,
    ):
        for notes in (journal, quarantine):
            for id in (entry["id"] for entry in notes):
                if id not in asked:
                    raise T2GError(
                        f"{notes.path}: the entry {id!r} is none of the {len(asked)} that this run "
                        "asks for; delete its line, or put back annotate.prompts and "
                        "annotate.samples_per_prompt as they were"
                    )
        # If a line is damaged, better said now than in the end.
        for record in records_of(journal, context):
            example = asked[record.id]
            if (record.prompt_id, record.prompt) != (example.id, example.prompt):
                raise T2GError(
                    f"{journal.path}: the entry {record.id!r} is about the prompt "
                    f"{record.prompt_id!r}, where this run has {example.id!r}; delete "
                    f"{journal.path.parent} to annotate anew"
                )
        yield Notes(context, journal, quarantine)


def record_id(place: int, sample: int) -> str:
    """By the prompt's place in the stream: it stays with another batch size."""
    return f"{place}-{sample}"


def records_of(journal: Journal, context: Context) -> list[AnnotationRecord]:
    """The records in a journal.

    A model may have more rows than its tokenizer has tokens, and sample one of those.

    Raises:
      T2GError: an entry is none, or none of this model and tokenizer.
    """
    tokenizer = context.tokenizer
    records = []
    for entry in journal:
        try:
            record = AnnotationRecord.from_example(entry)
            validate(record, vocabulary=context.model.vocab_size)
            if tokenizer.decode(record.completion_tokens.tolist()) != record.completion:
                raise T2GError("completion_tokens are not those of completion")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise T2GError(
                f"{journal.path}: the entry {entry['id']!r} is damaged ({error}); delete its line "
                "to have that record done again"
            ) from error
        records.append(record)
    return records


def annotated(context: Context, id: str, turn: Turn, judgment: Judgment) -> AnnotationRecord:
    """The record of a judged completion."""
    return AnnotationRecord(
        id=id,
        prompt_id=turn.example.id,
        prompt=prompt_text(turn.example.prompt),
        prompt_tokens=np.array(turn.prompt),
        completion=turn.text,
        completion_tokens=turn.completion.tokens,
        completion_logprobs=turn.completion.logprobs,
        critique=judgment.critique.text,
        judge=name_of(context.judge),
        reward=turn.score.reward,
        correct=turn.score.correct,
        span_starts=np.array([span.start for span in judgment.spans], int),
        span_ends=np.array([span.end for span in judgment.spans], int),
        span_rewards=np.array([span.reward for span in judgment.spans], float),
        unaligned=tuple(
            f"{item.quote.text[:SHOWN]}: {item.reason[:SHOWN]}" for item in judgment.unaligned
        ),
    )


def split(
    records: Sequence[AnnotationRecord], held_out: float, quarantined: dict[str, int]
) -> dict[str, list[AnnotationRecord]]:
    """ "train" and "held_out": a share of the prompts, at least one, with all their completions.

    Raises:
      T2GError: there are fewer than two prompts.
    """
    # In the order they were drawn, at random; by their text, as a puzzle may have two ids.
    prompts = list(dict.fromkeys(record.prompt for record in records))
    if len(prompts) < 2:
        reasons = collections.Counter(quarantined).most_common(3)
        raise T2GError(
            f"{len(prompts)} prompts could be annotated, and one must be held out: raise "
            f"annotate.prompts"
            + (
                f"; or see to what was quarantined: {dict(reasons)}, and delete quarantine.jsonl "
                "to have it tried again"
                if reasons
                else ""
            )
        )
    count = min(max(round(len(prompts) * held_out), 1), len(prompts) - 1)
    kept_apart = set(prompts[:count])
    return {
        "train": [record for record in records if record.prompt not in kept_apart],
        "held_out": [record for record in records if record.prompt in kept_apart],
    }
