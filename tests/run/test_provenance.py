"""What each result was made from: recorded, checked by who builds on it, shown by the report."""

import functools
import html
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny import without_checksum

from t2g_jax import cli
from t2g_jax.config import METHODS, is_aside
from t2g_jax.config.base import values
from t2g_jax.data import trial
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError
from t2g_jax.phases import annotate, evaluate, generate, policy, reporting, reward_model, sft
from t2g_jax.run import provenance
from t2g_jax.run.context import Context
from t2g_jax.run.workspace import BEFORE_METHODS, Workspace, accept_changes
from t2g_jax.training.checkpoint import Checkpoints

PHASES = (*BEFORE_METHODS, *METHODS)
TRAINED = [phase for phase in PHASES if phase != "annotate"]


def record(workdir, phase):
    return without_checksum(workdir / phase.replace("-", "_") / "complete.json")


def meta(workdir, phase, step=None):
    with Checkpoints(workdir / phase.replace("-", "_") / "checkpoints", read_only=True) as kept:
        return kept.meta(step)


def another_start(workdir, config):
    """Another warm start in the place of the one that is there."""
    params = Context.open(config, workdir).weights.load("sft")
    moved = jax.tree.map(lambda x: x + 0.01, params)
    summary, folder = record(workdir, "sft"), workdir / "sft"
    shutil.rmtree(folder / "checkpoints")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        meta = {"phase": "sft", "made": summary["made"]}
        checkpoints.save(summary["step"], {"params": moved}, meta)
        summary["fingerprint"] = checkpoints.fingerprint()
    (folder / "complete.json").write_text(json.dumps(summary))
    (folder / "evaluation.json").unlink()


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_says_what_it_was_made_from(tiny_run, phase):
    found = record(tiny_run.workdir, phase)
    made = found["made"]
    assert made["inputs"] == provenance.inputs(phase, tiny_run.config)
    assert made["tokenizer"] == provenance.of_files(tiny_run.workdir / "tokenizer")
    assert made["parents"] == {
        name: record(tiny_run.workdir, name)["fingerprint"]
        for name in provenance.parents(phase, tiny_run.config)
    }
    assert made["bases"] == {}
    assert "earlier" not in made
    if phase != "annotate":
        assert meta(tiny_run.workdir, phase)["made"] == made
        assert meta(tiny_run.workdir, phase)["step"] == found["step"]


def test_fingerprints_tell_artifacts_apart(tiny_run):
    found = [record(tiny_run.workdir, phase)["fingerprint"] for phase in PHASES]
    # Rejection sampling had nothing to learn from.
    assert len(set(found)) == len(PHASES) - (found[0] == found[-1])


@pytest.mark.parametrize(
    ("phase", "train"),
    {
        "sft": sft.run,
        "annotate": annotate.run,
        "reward_model": reward_model.run,
        "text2grad": lambda *run: policy.run(*run, "text2grad"),
        "grpo": lambda *run: policy.run(*run, "grpo"),
    }.items(),
)
def test_inputs_are_what_a_phase_reads(tiny_run, tmp_path, compiled_once, phase, train):
    """It looks at no other field, but for those that are aside, and those of earlier phases."""
    config = tiny_run.config
    before = [name for name in PHASES if name in ("sft", "annotate", "reward_model")]
    before = before[: before.index(phase)] if phase in before else before
    steps = {"sft__steps": 1} if phase == "sft" else {"text2grad__steps": 1, "grpo__steps": 1}
    workdir, config = tiny_run.branch(tmp_path / "run", *before, **steps)
    read: set[tuple[str, str]] = set()
    with compiled_once(), tiny.spying(read):
        train(config, workdir)
    known = set(provenance.inputs(phase, config)).union(
        *(provenance.inputs(name, config) for name in provenance.parents(phase, config))
    )
    # Whether there are adapters, and a warm start of one's own, decides where parameters are.
    known |= {"lora.rank", "lora.alpha", "lora.pretrained", "sft.steps"}
    # And what a run will read is checked before its first phase.
    known |= {"reward_model.pretrained", "text2grad.span_source"}
    unknown = set()
    for key in values(config):
        section, _, name = key.rpartition(".")
        if section == "task.settings":  # entries, not fields
            continue
        owner = functools.reduce(getattr, section.split("."), config) if section else config
        if (type(owner).__name__, name) in read and not (key in known or is_aside(key)):
            unknown.add(key)
    # One class is that of all optimizers.
    assert {key for key in unknown if ".optimizer." not in key} == set()


def test_what_is_aside_does_not_change_a_byte_of_what_is_learned(
    tiny_run, tmp_path, compiled_once, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["t2g", "run", "another.yaml"])
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft")
    aside = {
        "grpo__rows_at_once": 4,
        "grpo__eval_every": 1,
        "task__test_size": 3,
        "judge__workers": 3,
        "judge__timeout_seconds": 5.0,
        "evaluate__samples_per_prompt": 1,
        "checkpoint__every_steps": 1,
        "checkpoint__keep_last": 9,
        "checkpoint__keep_best": None,
        "training__watchdog_minutes": 0.0,
        "name": "other",
    }
    config = tiny.with_values(tiny_run.config, **aside)
    with compiled_once():
        policy.run(config, workdir, "grpo")
    ours, theirs = (record(root, "grpo") for root in (workdir, tiny_run.workdir))
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["made"] == theirs["made"]
    assert meta(workdir, "grpo") == meta(tiny_run.workdir, "grpo")
    assert sorted(p.name for p in (workdir / "grpo/checkpoints").iterdir() if p.is_dir()) == [
        *("1", "2", "3")
    ]


# --- Evaluations -----------------------------------------------------------------------------


def test_scores_are_measured_again_with_other_settings(tiny_run, tmp_path, compiled_once, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    first = without_checksum(workdir / "grpo" / "evaluation.json")
    with compiled_once():
        more = evaluate.run(tiny.with_values(config, evaluate__samples_per_prompt=3), workdir)
        said = capsys.readouterr().err
        assert "grpo: measured again, as it is of other settings: " in said
        assert "evaluate.samples_per_prompt: 2 → 3" in said
        assert [len(row) for row in more["grpo"]["correct"]] == [3] * 4
        assert more["sft"]["settings"]["evaluate.samples_per_prompt"] == 3
        again = evaluate.run(config, workdir)
    same = {name: value for name, value in again["grpo"].items() if name != "seconds"}
    assert same == {name: value for name, value in first.items() if name != "seconds"}


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluate__samples_per_prompt": 1},
        {"sampling__temperature": 0.5},
        {"sampling__max_new_tokens": 8},
        {"judge__level": "what"},
        {"judge__name": "my:judge"},
        {"task__test_size": 3},
        {"task__seed": 1},
        {"seed": 1},
        {"evaluate__checkpoint": "best"},
        {"judge__workers": 2},
        {"judge__batch_size": 2},
        {"evaluate__batch_size": 1},
        {"tracking__project": "mine"},
        {"grpo__steps": 5},
    ],
)
def test_what_scores_stand_for(tiny_run, changed):
    (key,) = changed
    ours = provenance.measured_with(tiny_run.config)
    theirs = provenance.measured_with(tiny.with_values(tiny_run.config, **changed))
    nothing = (
        *("judge__workers", "judge__batch_size", "evaluate__batch_size"),
        *("tracking__project", "grpo__steps"),
    )
    assert (ours == theirs) == (key in nothing)


def test_scores_of_a_judge_stand_for_its_settings(tiny_run):
    scores = [
        provenance.measured_with(
            tiny.with_values(tiny_run.config, judge__name="my:judge", judge__settings=settings)
        )
        for settings in ({}, {"model": "a"}, {"model": "b"}, {"stop": ["a", {"b": None}]})
    ]
    assert all(a != b for i, a in enumerate(scores) for b in scores[:i])


def test_scores_of_other_parameters_are_measured_again(tiny_run, tmp_path, compiled_once, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    kept = (workdir / "sft" / "evaluation.json").read_bytes()
    with compiled_once():
        another_start(workdir, config)
        (workdir / "sft" / "evaluation.json").write_bytes(kept)
        with pytest.raises(T2GError, match="is of other parameters than those that sft has now"):
            reporting.run(config, workdir)
        found = evaluate.run(config, workdir)
    assert "sft: measured again, as it is of other settings: of other parameters" in (
        capsys.readouterr().err
    )
    assert found["sft"]["fingerprint"] == record(workdir, "sft")["fingerprint"]


# --- What no longer belongs together ---------------------------------------------------------


@pytest.fixture
def other_start(tiny_run, tmp_path, compiled_once):
    """A work directory whose warm start is not the one that its phases were made from."""
    phases = ("sft", "annotate", "reward_model", "grpo")
    workdir, config = tiny_run.branch(tmp_path / "run", *phases)
    another_start(workdir, config)
    with compiled_once():
        yield workdir, config


def test_nothing_is_trained_on_what_does_not_belong_together(other_start):
    workdir, config = other_start
    another = "another sft/ than the one that is there"
    with pytest.raises(T2GError, match=rf"reward_model was made from {another}; .*t2g train-rm"):
        policy.run(config, workdir, "text2grad")
    (workdir / "reward_model" / "complete.json").unlink()
    with pytest.raises(T2GError, match=rf"annotate was made from {another}; .*t2g annotate"):
        reward_model.run(config, workdir)
    assert not (workdir / "text2grad").exists()
    (workdir / "grpo" / "complete.json").unlink()  # as if it were under way
    with pytest.raises(T2GError, match=rf"grpo was begun with {another}; .*delete"):
        policy.run(config, workdir, "grpo")


def test_answers_say_what_does_not_belong_together(other_start, capsys):
    """Also on other devices than those of the training: nothing is learned from it."""
    workdir, config = other_start
    mesh = {"mesh__data": 4, "mesh__fsdp": 2, "model__attention": "xla"}
    generate.run(tiny.with_values(config, **mesh), workdir, "grpo", "2 + 2?")
    captured = capsys.readouterr()
    assert "2 + 2?" in captured.out
    for phase in ("grpo", "reward_model"):
        assert f"{phase} was made from another sft/ than the one that is there" in captured.err
    with pytest.raises(T2GError, match="another config"):
        policy.run(tiny.with_values(config, **mesh), workdir, "ppo")


def test_notes_of_another_policy_are_not_gone_on_with(other_start):
    workdir, config = other_start
    (workdir / "annotate" / "complete.json").unlink()
    with pytest.raises(T2GError, match=r"annotate was begun with another sft/ than .*delete"):
        annotate.run(config, workdir)


def test_the_report_marks_what_does_not_belong_together(other_start, capsys):
    workdir, config = other_start
    evaluate.run(config, workdir)
    report = reporting.run(config, workdir)
    (row,) = report.results
    assert np.isnan(row.before)
    made = {found.phase: found for found in report.made_with}
    assert made["grpo"].misfits == ("another sft/ than the one that is there",)
    assert made["sft"].misfits == ()
    expected = "grpo was made from another sft/ than the one that is there"
    assert any(warning.startswith(expected) for warning in report.warnings)
    assert expected in " ".join(capsys.readouterr().out.split())
    assert f"made from {made['grpo'].misfits[0]}" in html.unescape(
        (workdir / "report.html").read_text()
    )
    policy.run(config, workdir, "grpo")
    said = capsys.readouterr().err
    assert "grpo: complete, skipped" in said
    assert f"delete {workdir / 'grpo'} to have it done again" in said


def test_results_are_shown_with_their_own_settings(tiny_run, tmp_path, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo", methods=("grpo",))
    changed = tiny.with_values(config, seed=7, grpo__optimizer__learning_rate=0.9)
    accept_changes(workdir, changed)
    report = reporting.run(changed, workdir)
    made = {found.phase: found for found in report.made_with}
    assert made["grpo"].differs == (
        "seed: 0, not 7",
        "grpo.optimizer.learning_rate: 0.0003, not 0.9",
    )
    assert made["sft"].differs == ("seed: 0, not 7",)
    assert "2 samples of each of 4 test prompts, seed 0, temperature 1" in made["grpo"].measured
    page = html.unescape((workdir / "report.html").read_text())
    assert "grpo.optimizer.learning_rate: 0.0003, not 0.9" in page
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning: grpo was made with seed: 0, not 7" in said
    assert "sft, grpo: 2 samples of each of 4 test prompts" in said


def test_a_report_without_departures_warns_of_none(tiny_run):
    report = reporting.contents(Workspace(tiny_run.workdir, tiny_run.config))
    assert all(not made.differs and not made.misfits for made in report.made_with)
    assert [made.phase for made in report.made_with] == list(PHASES)


def test_changed_inputs_of_a_phase_under_way_are_remembered(tiny_run, tmp_path, compiled_once):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    (workdir / "grpo" / "complete.json").unlink()
    changed = tiny.with_values(config, grpo__steps=4, grpo__epsilon_low=0.1)
    accept_changes(workdir, changed)
    with compiled_once():
        policy.run(changed, workdir, "grpo")
        earlier = record(workdir, "grpo")["made"]["earlier"]
        assert earlier == [{"until": 3, "inputs": {"grpo.steps": 3, "grpo.epsilon_low": 0.2}}]
        assert meta(workdir, "grpo")["made"]["earlier"] == earlier
        evaluate.run(changed, workdir)
    (found,) = [
        made
        for made in reporting.contents(Workspace(workdir, changed)).made_with
        if made.phase == "grpo"
    ]
    assert found.differs == ("until step 3: grpo.steps: 3, grpo.epsilon_low: 0.2",)


# --- The step that is complete ---------------------------------------------------------------


def test_another_step_is_not_taken_for_the_complete_one(tiny_run, tmp_path, compiled_once):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    folder = workdir / "grpo" / "checkpoints"
    shutil.rmtree(folder / "3")
    (workdir / "grpo" / "evaluation.json").unlink()
    with compiled_once():
        with pytest.raises(T2GError) as error:
            evaluate.run(config, workdir)
        said = str(error.value)
        assert f"{folder} has no step 3 any more, with which grpo was complete, but [" in said
        with pytest.raises(T2GError, match="has no step 3 any more"):
            Context.open(config, workdir).weights.load("grpo")
        assert f"delete {workdir / 'grpo' / 'complete.json'}" in said
        # What is advised works, and ends with the same bits.
        (workdir / "grpo" / "complete.json").unlink()
        again = policy.run(config, workdir, "grpo")
        assert again["fingerprint"] == record(tiny_run.workdir, "grpo")["fingerprint"]
        assert evaluate.run(config, workdir)["grpo"]["step"] == 3


def test_other_parameters_of_the_same_step_are_refused(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    shutil.rmtree(workdir / "grpo" / "checkpoints")
    theirs = tiny_run.workdir / "rltf_sd" / "checkpoints"
    shutil.copytree(theirs, workdir / "grpo" / "checkpoints")
    with pytest.raises(T2GError, match="does not hold what grpo was complete with"):
        Context.open(config, workdir).weights.load("grpo")


@pytest.mark.parametrize("key", ["step", "fingerprint", "made"])
@pytest.mark.parametrize("value", [None, [], 1.5])
def test_a_damaged_record_is_named(tiny_run, tmp_path, key, value):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    path = workdir / "sft" / "complete.json"
    whole = without_checksum(path)
    changed = {k: v for k, v in whole.items() if k != key} | ({} if value is None else {key: value})
    path.write_text(json.dumps(changed))
    with pytest.raises(T2GError, match=rf"{path} is damaged \(.*delete it, and run `t2g sft"):
        Context.open(config, workdir).weights.load("sft")


# --- The tokenizer, the data set, the base ---------------------------------------------------


def test_another_tokenizer_is_refused(tiny_run, tmp_path, capsys):
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    path = workdir / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("\\\\p{N}", "\\\\p{L}", 1).replace(" ", "  ", 1))
    words = ["--workdir", str(workdir), "--accept-changes"]
    for command in (["evaluate"], ["run"], ["generate", "--method", "sft"]):
        assert cli.main([command[0], str(tiny.CONFIG), *command[1:], *words]) == 2
        error = capsys.readouterr().err
        assert f"{workdir}/sft was made with another tokenizer than the one in" in error


def test_what_is_not_ours_is_never_loaded(tiny_run, tmp_path, monkeypatch, capsys):
    """By no command: who knows what its files do."""
    done, _ = tiny_run.branch(tmp_path / "done", "sft", "grpo")
    begun, _ = tiny_run.branch(tmp_path / "begun", "sft")
    (begun / "sft" / "complete.json").unlink()
    for workdir in (done, begun):
        with open(workdir / "tokenizer" / "chat_template.jinja", "a") as template:
            template.write("{{ 'x' * 10 ** 11 }}")

    def load(*_, **__):
        pytest.fail("it was loaded")

    monkeypatch.setattr(ChatTokenizer, "load", load)
    changed = ["--accept-changes", "--seed", "1"]
    for workdir, how, commands in (
        (done, "made", ["evaluate", "run", "generate", "export", "train-policy"]),
        (begun, "begun", ["sft", "run"]),
    ):
        method = {"generate": ["--method", "sft"], "train-policy": ["--method", "ppo"]}
        method["export"] = ["--method", "sft", "--to", str(tmp_path / "x")]
        for command in commands:
            for words in ([], changed):
                assert cli.main([command, str(workdir), *method.get(command, []), *words]) == 2
                error = capsys.readouterr().err
                assert f"{workdir}/sft was {how} with another tokenizer than the one" in error
        assert not list(workdir.glob("config.*.yaml"))


def test_a_tokenizer_of_which_nothing_is_known_is_tried_first(tiny_run, tmp_path, capsys):
    workdir, _ = tiny_run.branch(tmp_path / "new")
    template = workdir / "tokenizer" / "chat_template.jinja"
    template.write_text("{{ 'x' * 10 ** 11 }}" + template.read_text())
    assert cli.main(["sft", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert f"the tokenizer in {workdir}/tokenizer takes more than" in error
    assert not (workdir / "sft").exists()


def test_the_tokenizer_of_a_run_is_not_tried(tiny_run, tmp_path, monkeypatch):
    """It takes seconds, and one that was made here, or that phases were made with, is known."""
    monkeypatch.setattr(trial.subprocess, "run", lambda *_, **__: pytest.fail("it was tried"))
    for _ in range(2):  # as a run does, which looks first whether it can begin
        Context.open(tiny_run.config, tmp_path / "new")
    workdir, config = tiny_run.branch(tmp_path / "begun", "sft")
    Context.open(config, workdir)
    (workdir / "sft" / "complete.json").unlink()
    Context.open(config, workdir)


def test_no_other_tokenizer_is_made_below_what_is_there(tiny_run, tmp_path, capsys, compiled_once):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    shutil.rmtree(workdir / "tokenizer")
    words = ["train-policy", str(tiny.CONFIG), "--method", "grpo", "--workdir", str(workdir)]
    for changed, said in (
        (["--tokenizer.vocabulary_size", "300"], "tokenizer was trained already, and stays"),
        (["--task.seed", "1"], "sft was made with another tokenizer"),  # of other texts
    ):
        assert cli.main([*words, *changed, "--accept-changes"]) == 2
        assert said in capsys.readouterr().err
    assert not list(workdir.glob("tokenizer*"))
    accept_changes(workdir, config)
    assert Context.open(config, workdir).tokenizer.vocab_size  # made again, the same


def test_a_phase_under_way_goes_on_with_its_tokenizer_only(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    (workdir / "sft" / "complete.json").unlink()
    path = workdir / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    log = (workdir / "sft" / "metrics.jsonl").read_bytes()
    with pytest.raises(T2GError, match=r"sft was begun with another tokenizer than .*put back"):
        sft.run(config, workdir)
    assert (workdir / "sft" / "metrics.jsonl").read_bytes() == log


def test_annotations_that_are_not_those_that_were_made(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "annotate")
    path = workdir / "annotate" / "complete.json"
    path.write_text(json.dumps(without_checksum(path) | {"fingerprint": "0" * 16}))
    with pytest.raises(T2GError, match=r"dataset is not what annotate was complete with.*delete"):
        reward_model.run(config, workdir)


def test_samples_of_steps_that_come_again_are_dropped(tiny_run, tmp_path, compiled_once):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    folder = workdir / "grpo" / "samples"
    shutil.copytree(tiny_run.workdir / "grpo" / "samples", folder)
    shutil.copy(folder / "00000000.json", folder / "00000077.json")
    with compiled_once():
        policy.run(config, workdir, "grpo")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (tiny_run.workdir / "grpo" / "samples").iterdir()
    )


def test_phases_of_all_methods_are_known(tiny_run):
    everything = provenance.reads("mine", tiny_run.config)  # of a phase that nobody knows
    for phase in PHASES:
        assert set(provenance.reads(phase, tiny_run.config)) < {
            *everything,
            *("sampling.max_new_tokens", *provenance._OF_REWARD_MODEL),
        }
    assert set(tiny_run.config.known_methods) == set(METHODS)
