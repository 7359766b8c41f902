"""All phases, one after the other, as `t2g run` does: what they write, and what they refuse."""

import os
import re
import subprocess
import sys

import pytest
import tiny

from t2g_jax import cli
from t2g_jax.config import METHODS
from t2g_jax.errors import ConfigError, T2GError
from t2g_jax.phases import (
    annotate,
    evaluate,
    generate,
    pipeline,
    policy,
    reporting,
    reward_model,
    sft,
)
from t2g_jax.training.metrics import read_metrics

TRAINED = ("sft", "reward_model", *(method.replace("-", "_") for method in METHODS))


def test_every_artifact_is_there(tiny_run):
    root = tiny_run.workdir
    expected = ["config.yaml", "tokenizer/tokenizer.json", "report.html"]
    expected += [f"{phase}/checkpoints" for phase in TRAINED]
    expected += [f"{phase}/metrics.jsonl" for phase in TRAINED]
    expected += [f"{phase}/complete.json" for phase in (*TRAINED, "annotate")]
    expected += [f"{phase}/evaluation.json" for phase in TRAINED if phase != "reward_model"]
    expected += ["annotate/dataset/dataset_info.json"]
    expected += ["annotate/journal.jsonl", "annotate/quarantine.jsonl"]
    expected += [f"text2grad/samples/{step:08d}.json" for step in range(3)]
    assert [path for path in expected if not (root / path).exists()] == []
    assert list(root.rglob("*.incomplete")) == []


def test_the_best_checkpoint_may_be_chosen_by_all_that_methods_measure(tiny_run):
    """What each says that it measures is what its log has, and more only where it may be absent."""
    apart = "phase|step|learning_rate|rows_too_long|prompts_too_long|skipped_.*|tokens_gen.*"
    apart += "|.*_coefficient|(seconds|tokens_per_second).*"
    no_looks = {"test_accuracy", "test_reward"}  # methods that are not evaluated on the way
    # Of rejection sampling, which then learns nothing:
    nothing_right = {"loss", "grad_norm", "nll", "nll_loss"}
    for method in METHODS:
        lines = read_metrics(tiny_run.workdir / method.replace("-", "_"))
        logged = {name for line in lines for name in line if not re.fullmatch(apart, name)}
        measures = tiny_run.config.of_method(method).measures
        assert logged <= measures
        assert measures - logged <= no_looks | nothing_right


def test_a_metric_that_a_method_does_not_measure_is_refused_before_anything_is_made(
    tiny_run, tmp_path
):
    config = tiny.with_values(tiny_run.config, checkpoint__keep_best="span_reward")
    with pytest.raises(ConfigError, match=r"span_reward\) is not measured by rltf-sd; .* reward, "):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    workdir, config = tiny_run.branch(
        tmp_path / "branch", "sft", methods=("text2grad",), checkpoint__keep_best="span_reward"
    )
    with pytest.raises(ConfigError, match="not measured by grpo"):
        policy.run(config, workdir, "grpo")
    assert not (workdir / "grpo").exists()


def test_only_folders_of_phases_that_ran(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    reporting.contents(reporting.Workspace(workdir, config))
    assert sorted(path.name for path in workdir.iterdir() if path.is_dir()) == [
        "grpo",
        "sft",
        "tokenizer",
    ]


def test_a_second_run_does_nothing_again(tiny_run, capsys):
    def written():
        files = [path for path in tiny_run.workdir.rglob("*") if path.is_file()]
        always = ("report.html", "run.lock")
        return {path: path.stat().st_mtime_ns for path in files if path.name not in always}

    before = written()
    assert cli.main(["run", str(tiny.CONFIG), "--workdir", str(tiny_run.workdir)]) == 0
    assert written() == before
    said = capsys.readouterr().err
    names = [*pipeline.phases(tiny_run.config), "evaluate"]
    for phase in names[:-1]:
        assert f"{phase}: complete, skipped" in said
    assert f"phase 1 of {len(names)}: sft; then {', '.join(names[1:])}\n" in said
    assert re.search(
        rf"phase {len(names)} of {len(names)}: evaluate, \S+ s after the start\n", said
    )


def test_a_phase_that_is_complete_gives_its_summary(tiny_run):
    config, workdir = tiny_run.config, tiny_run.workdir
    for phase in (sft, annotate, reward_model):
        assert phase.run(config, workdir)["phase"] == phase.__name__.rpartition(".")[2]
    for method in config.methods:
        assert policy.run(config, workdir, method)["phase"] == method


def test_another_config_is_refused(tiny_run, capsys):
    changed = tiny.with_values(tiny_run.config, seed=1, text2grad__kl="k1")
    with pytest.raises(T2GError, match=r"another config \(seed: 0 → 1, text2grad\.kl: "):
        pipeline.run(changed, tiny_run.workdir)
    words = ["run", str(tiny.CONFIG), "--workdir", str(tiny_run.workdir), "--sft.steps", "2"]
    assert cli.main(words) == 2
    assert "another config (sft.steps: 30 → 2)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def beginning(tiny_run, tmp_path_factory):
    """A work directory where nothing is complete."""
    return tiny_run.branch(tmp_path_factory.mktemp("beginning") / "run")


@pytest.mark.parametrize(
    ("run", "command"),
    [
        (annotate.run, "t2g sft"),
        (reward_model.run, "t2g sft"),
        (lambda *run: policy.run(*run, "text2grad"), "t2g sft"),
        (lambda *run: policy.run(*run, "rltf-sd"), "t2g sft"),
        (lambda *run: policy.run(*run, "grpo"), "t2g sft"),
        (evaluate.run, "t2g sft"),
        (reporting.run, "t2g evaluate"),
        (lambda *run: generate.run(*run, "sft", None), "t2g sft"),
        (lambda *run: generate.run(*run, "rltf-sd", None), "t2g train-policy --method rltf-sd"),
    ],
)
def test_phases_out_of_order_name_the_command(beginning, run, command):
    workdir, config = beginning
    with pytest.raises(T2GError, match=f"is missing: first run `{command} CONFIG`"):
        run(config, workdir)


@pytest.mark.parametrize(
    ("complete", "run", "command"),
    [
        (("sft",), reward_model.run, "t2g annotate"),
        (("sft",), lambda *run: policy.run(*run, "text2grad"), "t2g train-rm"),
    ],
)
def test_phases_after_the_first_name_the_command(tiny_run, tmp_path, complete, run, command):
    workdir, config = tiny_run.branch(tmp_path / "run", *complete)
    with pytest.raises(T2GError, match=f"is missing: first run `{command} CONFIG`"):
        run(config, workdir)


def test_phases_are_those_that_the_methods_need(tiny_run):
    def names(**values):
        return list(pipeline.phases(tiny.with_values(tiny_run.config, **values)))

    assert names() == ["sft", "annotate", "reward_model", *tiny_run.config.methods]
    assert sorted(tiny_run.config.methods) == sorted(METHODS)
    assert names(methods=("grpo", "rltf-sd")) == ["sft", "grpo", "rltf-sd"]
    assert names(methods=("text2grad",), text2grad__span_source="judge") == ["sft", "text2grad"]


def test_no_field_of_the_config_is_unread(tiny_run):
    """But for what goes with a pretrained model, see test_own_model.py, and which divergence has
    which price where it has none, see test_reference.py and test_needs.py; and `plugins`, which say
    what the config is made of, see test_plugins.py."""
    unread = tiny.fields_of(tiny_run.config) - tiny_run.read
    free = [type(tiny_run.config.of_method(m)).__name__ for m in ("grpo", "rltf-sd", "rltf-fm")]
    unpriced = {
        (section, field)
        for section in free
        for field in ("kl", "kl_in", "adaptive_kl_horizon", "adaptive_kl_target_per_sequence")
    }
    priced = ("text2grad", "ppo", "grpo-multiturn")
    unpriced |= {(type(tiny_run.config.of_method(m)).__name__, "log_kl") for m in priced}
    before = {(type(tiny_run.config).__name__, "plugins")}
    assert unread <= {("LoRAConfig", "pretrained")} | unpriced | before


def test_the_log_of_a_policy_has_what_one_asks_of_it(tiny_run):
    everywhere = (
        "accuracy reward formatted completion_tokens cut_off loss policy_loss grad_norm entropy "
        "kl_sampler_trainer ratio ratio_min ratio_max clip_fraction tokens_generated "
        "tokens_trained seconds_sample seconds_update tokens_per_second_sample "
        "tokens_per_second_update"
    ).split()
    besides = {
        "text2grad": "judge_failures unaligned_quotes span_reward kl kl_coefficient value_loss "
        "seconds_score tokens_per_second_score",
        "rltf_sd": "judge_failures no_room accuracy_turn_2 seconds_judge distill_loss",
        "grpo": "",
    }
    for phase, more in besides.items():
        log = read_metrics(tiny_run.workdir / phase)
        assert [line["step"] for line in log] == [1, 2, 3]
        for line in log:
            assert [name for name in (*everywhere, *more.split()) if name not in line] == []
        tested = [line["step"] for line in log if "test_accuracy" in line]
        assert tested == [1, 3]  # eval_every: 2, and the policy of a line is the one before it
        assert all("seconds_evaluate" in log[step - 1] for step in tested)


def test_before_the_first_update_the_policy_is_what_was_sampled_and_the_reference(tiny_run):
    for phase in ("rltf_sd", "grpo"):
        line = read_metrics(tiny_run.workdir / phase)[0]
        assert line["ratio_min"] == pytest.approx(1, abs=1e-4)
        assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
        assert line["clip_fraction"] == 0
        assert "kl" not in line  # nobody asks: it costs nothing
    for phase in ("text2grad", "rltf_sd", "grpo"):
        for line in read_metrics(tiny_run.workdir / phase):
            assert line["kl_sampler_trainer"] == pytest.approx(0, abs=1e-6)
    assert read_metrics(tiny_run.workdir / "text2grad")[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_command_in_a_process_of_its_own(tiny_run, root):
    result = subprocess.run(
        [sys.executable, "-m", "t2g_jax", "report", tiny.CONFIG, "--workdir", tiny_run.workdir],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    assert "Report: " in result.stdout
