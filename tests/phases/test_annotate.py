import dataclasses
import itertools
import json
import shutil
import sys

import numpy as np
import pytest
import tiny

from t2g_jax.data.dataset import load_dataset, read_metadata
from t2g_jax.data.journal import Journal, Quarantine
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.errors import T2GError
from t2g_jax.feedback.judgment import judge
from t2g_jax.phases import annotate
from t2g_jax.phases.annotate import annotated, split
from t2g_jax.run.workspace import accept_changes
from t2g_jax.spans import Quote
from t2g_jax.tasks.base import Critique, JudgeError
from t2g_jax.tasks.puzzles.binary_matrix import BinaryMatrixJudge


def both(workdir):
    dataset = workdir / "annotate" / "dataset"
    return {name: list(load_dataset(dataset, name)) for name in ("train", "held_out")}


def everything(workdir):
    return list(itertools.chain(*both(workdir).values()))


def begun(tiny_run, workdir):
    """The folder of annotations that say what they are made from, and no more yet."""
    folder = workdir / "annotate"
    folder.mkdir()
    shutil.copy(tiny_run.workdir / "annotate" / "begun.json", folder)
    return folder


def test_what_is_written(tiny_run):
    splits = both(tiny_run.workdir)
    summary = json.loads((tiny_run.workdir / "annotate" / "complete.json").read_text())
    assert summary["records"] == {name: len(records) for name, records in splits.items()}
    records = everything(tiny_run.workdir)
    assert len(records) == 8 * 2
    assert summary["tokens_generated"] == sum(len(r.completion_tokens) for r in records)
    assert summary["unaligned"] == sum(len(r.unaligned) for r in records)
    quotes = sum(len(r.span_rewards) + len(r.unaligned) for r in records)
    assert summary["quotes"] == quotes > 0
    assert summary["accuracy"] == np.mean([r.correct for r in records])
    assert summary["quarantined"] == {}
    facts = read_metadata(tiny_run.workdir / "annotate" / "dataset")
    assert facts == {"judge": "binary_matrix", "fingerprint": summary["fingerprint"]}
    prompts = [{record.prompt for record in records} for records in splits.values()]
    assert not prompts[0] & prompts[1]


def test_tokens_are_those_that_were_sampled(tiny_run, tiny_context):
    for record in both(tiny_run.workdir)["train"]:
        tokens = record.completion_tokens.tolist()
        assert tiny_context.tokenizer.decode(tokens) == record.completion
        assert len(record.completion_logprobs) == len(tokens)
        assert record.prompt_tokens.tolist() == tiny_context.prompts.render(record.prompt)
        assert record.judge == "binary_matrix"


class Fickle:
    """Never says the same twice."""

    name = "fickle"
    calls = 0

    def __init__(self, task, level):
        pass

    def critique(self, example, completion):
        Fickle.calls += 1
        if Fickle.calls == 3:
            raise JudgeError("timeout", OSError("\x1b[2J"))
        return Critique(f"Number {Fickle.calls}.", (Quote("nowhere\x1b", -1.0),))


def test_a_judge_is_asked_once_about_a_completion(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fickle", sys.modules[__name__])
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", judge__name="fickle:Fickle")
    first = annotate.run(config, workdir)
    said = capsys.readouterr().err
    assert "annotate: 1 of 16 critiques unusable: 1 timeout;" in said
    assert "15 of 15 quotes not found in the completion, the first: nowhere␛" in said
    assert "\x1b" not in said
    assert first["judge"]["judge_failed/timeout"] == 1
    assert first["unaligned_examples"]
    asked, journal = Fickle.calls, (workdir / "annotate" / "journal.jsonl").read_text()
    assert first["judge"]["judge_calls"] == asked
    shutil.rmtree(workdir / "annotate")
    again = annotate.run(config, workdir)
    assert Fickle.calls == asked + 1  # about what failed
    assert again["judge"]["judge_cached"] == 15
    lines = (workdir / "annotate" / "journal.jsonl").read_text().splitlines()
    assert set(journal.splitlines()) < set(lines)

    values = {"judge__name": "fickle:Fickle", "judge__level": "what"}
    other, config = tiny_run.branch(tmp_path / "other", "sft", **values)
    shutil.copy(workdir / "critiques.jsonl", other)
    before = Fickle.calls
    annotate.run(config, other)
    assert Fickle.calls == before + asked


def test_judge_failures_are_quarantined_and_never_praise(tiny_run, tmp_path, monkeypatch):
    critique = BinaryMatrixJudge.critique
    calls = []

    def now_and_then(self, example, completion):
        calls.append(completion)
        if len(calls) % 3 == 0:
            raise JudgeError("no credit left")
        return critique(self, example, completion)

    monkeypatch.setattr(BinaryMatrixJudge, "critique", now_and_then)
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    summary = annotate.run(config, workdir)
    assert summary["quarantined"] == {"judge: no credit left": 5}
    with Quarantine(workdir / "annotate" / "quarantine.jsonl") as quarantine:
        quarantined = {entry["id"]: entry["payload"]["completion"] for entry in quarantine}
    assert list(quarantined.values()) == calls[2::3]
    whole, rest = ({r.id: r for r in everything(d)} for d in (tiny_run.workdir, workdir))
    assert rest.keys() == whole.keys() - quarantined.keys()
    assert all(rest[id] == whole[id] for id in rest)


def test_a_judge_that_always_fails_leaves_nothing_to_learn_from(tiny_run, tmp_path, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(BinaryMatrixJudge, "critique", fail)
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", annotate__prompts=2)
    with pytest.raises(T2GError, match=r"0 prompts could be .*{'judge: no credit left': 4}"):
        annotate.run(config, workdir)
    assert not (workdir / "annotate" / "complete.json").exists()


def test_broken_completions_are_quarantined_and_not_judged(tiny_run, tmp_path, monkeypatch):
    attempt = annotate.attempt

    def broken(*arguments, **options):
        turns = attempt(*arguments, **options)
        completion = dataclasses.replace(turns[0].completion, broken=True)
        return [dataclasses.replace(turns[0], completion=completion), *turns[1:]]

    monkeypatch.setattr(annotate, "attempt", broken)
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    summary = annotate.run(config, workdir)
    (reason,), (count,) = summary["quarantined"].keys(), summary["quarantined"].values()
    assert "NaN or Inf" in reason
    whole, rest = ({r.id: r for r in everything(d)} for d in (tiny_run.workdir, workdir))
    assert len(whole) - len(rest) == count > 0
    assert all(rest[id] == whole[id] for id in rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion_tokens": [999_999]}, "holds the token 999999, but the tokenizer has"),
        ({"completion_logprobs": [0.5]}, "completion_logprobs holds 0.5"),
        ({"correct": "no"}, "correct is 'no'"),
        ({"completion": "something else"}, "completion_tokens are not those of completion"),
        ({"id": "77-0"}, "the entry '77-0' is none of the 16 that this run asks for"),
        ({"prompt_id": "another"}, "is about the prompt 'another', where this run has"),
    ],
)
def test_what_cannot_be_in_the_journal_is_refused(tiny_run, tmp_path, changes, message):
    """Its checksum is right: whoever wrote it wrote what is wrong."""
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    with Journal(tiny_run.workdir / "annotate" / "journal.jsonl") as journal:
        entry = next(iter(journal))
    if "completion_tokens" in changes:
        changes = changes | {"completion_logprobs": []}
    if changes.get("completion_logprobs"):
        changes["completion_logprobs"] *= len(entry["completion_tokens"])
    with Journal(begun(tiny_run, workdir) / "journal.jsonl") as journal:
        journal.append(entry | changes)
    before = journal.path.read_bytes()
    with pytest.raises(T2GError) as error:
        annotate.run(config, workdir)
    assert message in str(error.value)
    assert str(journal.path) in str(error.value)
    assert journal.path.read_bytes() == before


def test_how_many_are_drawn(tiny_run, tmp_path):
    values = {"prompts": 3, "samples_per_prompt": 1, "batch_size": 2, "held_out": 0.5}
    changes = {f"annotate__{name}": value for name, value in values.items()}
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", **changes)
    assert annotate.run(config, workdir)["records"] == {"train": 1, "held_out": 2}
    # Prompt, sample.
    assert {r.id for r in everything(workdir)} == {"0-0", "1-0", "2-0"}


def test_another_batch_size_half_way_leaves_no_prompt_out(tiny_run, tmp_path):
    """As accepted with --accept-changes: what is judged stays, the other prompts are drawn."""
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    folder = begun(tiny_run, workdir)
    lines = (tiny_run.workdir / "annotate" / "journal.jsonl").read_text().splitlines(True)
    (folder / "journal.jsonl").write_text("".join(lines[:6]))
    changed = tiny.with_values(config, annotate__batch_size=3)
    accept_changes(workdir, changed)
    annotate.run(changed, workdir)
    ours, theirs = (
        {json.loads(line)["id"]: json.loads(line)["prompt"] for line in text}
        for text in ((folder / "journal.jsonl").read_text().splitlines(), lines)
    )
    assert ours == theirs


def test_temperatures_take_turns_among_the_samples_of_a_prompt(tiny_run, tmp_path, monkeypatch):
    sampled = []
    attempt = annotate.attempt

    def listening(*arguments, sampling, **options):
        sampled.append((sampling.temperature, [example.id for example in arguments[2]]))
        return attempt(*arguments, sampling=sampling, **options)

    monkeypatch.setattr(annotate, "attempt", listening)
    values = {"prompts": 2, "samples_per_prompt": 3, "temperatures": (1.0, 3.0)}
    changes = {f"annotate__{name}": value for name, value in values.items()}
    annotate.run(
        *tiny_run.branch(tmp_path / "run", "sft", sampling__temperature=0.5, **changes)[::-1]
    )
    assert [temperature for temperature, _ in sampled] == [0.5, 1.5, 0.5]
    assert len({tuple(ids) for _, ids in sampled}) == 1


@pytest.mark.parametrize(("held_out", "count"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_split_keeps_prompts_whole(held_out, count):
    records = [record(f"{prompt}-{i}", prompt) for prompt in "abcd" for i in range(3)]
    splits = split(records, held_out, {})
    assert [r.id for r in splits["held_out"]] == [r.id for r in records[: 3 * count]]
    assert [r.id for r in splits["train"]] == [r.id for r in records[3 * count :]]


def test_split_goes_by_the_text_of_a_prompt():
    records = [record("1", "a"), record("2", "b"), record("3", "a")]
    assert [r.id for r in split(records, 0.5, {})["held_out"]] == ["1", "3"]


def test_split_needs_two_prompts():
    with pytest.raises(T2GError, match=r"1 prompts could .* raise annotate.prompts$"):
        split([record("1", "a")], 0.5, {})


def record(id, prompt):
    tokens, nothing = np.array([1]), np.array([])
    return AnnotationRecord(
        id=id,
        prompt_id=id,
        prompt=prompt,
        prompt_tokens=tokens,
        completion="",
        completion_tokens=tokens,
        completion_logprobs=nothing,
        critique="",
        judge="",
        reward=0,
        correct=False,
        span_starts=nothing,
        span_ends=nothing,
        span_rewards=nothing,
    )


def test_quotes_that_are_not_there_are_kept_with_the_reason(tiny_context, monkeypatch):
    def critique(*_):
        return Critique("Hm.", (Quote("1", 1.0), Quote("nowhere at all", -1.0)))

    monkeypatch.setattr(BinaryMatrixJudge, "critique", critique)
    turn = tiny.turn(tiny_context, "0 1")
    judgment = judge(tiny_context.judges, tiny_context.tokenizer, turn)
    made = annotated(tiny_context, "id", turn, judgment)
    (unaligned,) = made.unaligned
    assert unaligned.startswith("nowhere at all: the phrase is not in the text")
    assert made.span_rewards.tolist() == [1.0]
    start, end = made.span_starts[0], made.span_ends[0]
    assert tiny_context.tokenizer.decode(made.completion_tokens[start:end].tolist()).strip() == "1"
