"""How often a run asks its judge, said before it begins."""

import json

import pytest
import tiny

from t2g_jax.errors import T2GError
from t2g_jax.phases import pipeline
from t2g_jax.phases.judge_calls import announcement, judge_calls
from t2g_jax.phases.reporting import contents
from t2g_jax.phases.samples import chosen
from t2g_jax.run.workspace import Workspace


def asked(run):
    """Calls by phase, as a run has counted them."""
    report = contents(Workspace(run.workdir, run.config))
    return {use.phase: use.calls + use.cached for use in report.judge}


def test_what_is_expected_is_what_happens(tiny_run):
    """In a run whose attempts are all wrong but for a few."""
    expected, real = judge_calls(tiny_run.config), asked(tiny_run)
    assert set(real) == set(expected)
    for phase, calls in real.items():
        # The careless solver of the warm start is right now and then; then nothing is repaired.
        least = 0.5 if phase == "sft" else 0.8
        assert least * expected[phase] <= calls <= expected[phase], phase
    assert real["annotate"] == expected["annotate"] == 16


def test_calls_of_the_log_add_up(tiny_run):
    for phase in ("sft", "rltf_sd"):
        lines = (tiny_run.workdir / phase / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((tiny_run.workdir / phase / "complete.json").read_text())
        calls = sum(json.loads(line)["judge_calls"] for line in lines)
        assert summary["judge"]["judge_calls"] == calls > 0


def test_who_asks(tiny_run):
    def calls(**values):
        return judge_calls(tiny.with_values(tiny_run.config, **values))

    own = calls()
    assert own["sft"] == 30 * 16 / 2
    mine = {"judge__name": "mine:make"}
    assert "sft" not in calls(**mine)
    assert calls(**mine, sft__critiques="judge")["sft"] == own["sft"]
    assert calls(sft__repair_fraction=0.0, sft__critique_fraction=0.25)["sft"] == 30 * 16 / 4
    assert "evaluate" not in calls(evaluate__second_turn=False)
    assert own["evaluate"] == 8 * 4 * 2
    assert calls(rltf_sd__turns=3)["rltf-sd"] == 2 * own["rltf-sd"] == 2 * 3 * 8
    assert "grpo" not in own
    assert "ppo" not in own
    marked = calls(text2grad__span_source="judge")
    assert "annotate" not in marked
    assert marked["text2grad"] == own["text2grad"] + 3 * 8


@pytest.mark.parametrize("every", [0, 1, 3, 20])
@pytest.mark.parametrize("budget", [None, 10**6])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_completions_shown_are_counted_step_by_step(tiny_run, every, budget, steps):
    section = {"steps": steps, "eval_every": every, "token_budget": budget}
    config = tiny.with_values(
        tiny_run.config, **{f"text2grad__{name}": value for name, value in section.items()}
    )
    shown = sum(len(chosen(config.text2grad, step, 8)) for step in range(steps))
    assert judge_calls(config)["text2grad"] == shown > 0


def test_the_number_of_steps_costs_nothing(tiny_run):
    """Else this would take an hour."""
    many = {"text2grad__steps": 2**31 - 1, "text2grad__eval_every": 1}
    config = tiny.with_values(tiny_run.config, **many, text2grad__token_budget=10**6)
    assert judge_calls(config)["text2grad"] == (2**31 - 1) * 4


def test_a_run_that_cannot_begin_announces_no_costs(tiny_run, tmp_path, capsys):
    config = tiny.with_values(tiny_run.config, judge__name="nowhere:make")
    with pytest.raises(T2GError, match="nowhere"):
        pipeline.run(config, tmp_path / "run")
    assert "asks the judge" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_it_is_said(tiny_run):
    line = announcement(tiny_run.config)
    total = sum(judge_calls(tiny_run.config).values())
    assert line.startswith(f"this run asks the judge (task) about {total:,} times at most: sft 240")
    nobody = {"methods": ("grpo",), "evaluate__second_turn": False, "sft__repair_fraction": 0.0}
    assert announcement(tiny.with_values(tiny_run.config, **nobody)).endswith("about 0 times")


def test_with_a_budget_no_number_is_promised(tiny_run):
    line = announcement(tiny.with_values(tiny_run.config, rltf_sd__token_budget=10**6))
    assert "at most" not in line
    assert "; of rltf-sd this is what the steps would ask" in line
    asks_nobody = tiny.with_values(tiny_run.config, grpo__token_budget=10**6)
    assert announcement(asks_nobody) == announcement(tiny_run.config)
