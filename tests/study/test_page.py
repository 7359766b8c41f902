"""The page of results: it says what the numbers say, always in the same words."""

import json
import re
import sys
import xml.etree.ElementTree

import pytest

from t2g_jax import cli
from t2g_jax.study.measures import Comparison
from t2g_jax.study.page import tabulate_tokens, verdict


def comparison(**changes):
    values = {
        "arm": "rltf-sd",
        "baseline": "grpo",
        "goal": 0.34,
        "learned": True,
        "tokens": 40_000,
        "one_off": 0,
        "best": 0.6,
        "spent": 100_000,
        "needed": 90_000,
        "by_seed": {0: 0.4, 1: None},
    } | changes
    return Comparison(**values)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "reaches grpo's final 34.0 % after 40 k tokens: 0.40 × those of grpo, at most half."),
        ({"tokens": 50_001}, "0.50 × those of grpo, more than half."),
        ({"tokens": 50_000}, "0.50 × those of grpo, at most half."),
        ({"one_off": 30_000}, "at most half (0.70 × with those for its reward model)."),
        ({"tokens": None}, "does not reach grpo's final 34.0 % within its tokens: at best 60.0 %."),
        ({"learned": False}, "grpo ends at 34.0 %, not clearly above the warm start, so there is"),
    ],
)
def test_verdicts_follow_from_the_numbers(changes, says):
    sentence = verdict(comparison(**changes), "matrix").replace("\u202f", " ")
    assert sentence.startswith("**matrix, rltf-sd**")
    assert says in sentence


def test_where_the_baseline_did_not_learn_there_is_nothing_to_reach():
    values = {"by_seed": {0: None}, "tokens": 0.0, "needed": 0.0}
    line = tabulate_tokens([comparison(learned=False, **values)]).splitlines()[-1]
    assert line.replace("\u202f", " ") == "| rltf-sd | grpo, 34.0 % | – | – | – | – | no |"


@pytest.fixture
def written(fake, study_file, tmp_path):
    path, root = study_file(), tmp_path / "cells"
    root.mkdir()
    accuracy = {"grpo": 0.5, "rltf-sd": 0.9, "spans": 0.3}
    (root / "behavior.json").write_text(json.dumps({"accuracy": accuracy}))
    assert cli.main(["study", str(path), "--workdir", str(root), "--jobs", "2"]) == 0
    return path, root, tmp_path / "docs"


def test_page(written):
    path, _, docs = written
    text = (docs / "results.md").read_text().replace("\u202f", " ")
    for said in (
        f"`t2g study {path}`",
        "\n\nChosen with care.\n\n",
        "| rltf-sd | grpo's final accuracy | 0.56 |",
        "| spans | grpo's final accuracy | no |",
        "Of 2 comparisons with a baseline that clearly learned, the goal was reached in 1, in 0 "
        "with at most half",
        "Floor: 5.0 %, a policy that copies the input. Warm start: 10.0 % of first attempts right, "
        "80.0 % after one critique.",
        "| grpo | 50.0 % |",
        "| 50.0, 50.0 | 500 | 2 of 2 |",
        "![Learning curves of matrix](results/matrix.svg)",
        "| rltf-sd | grpo, 50.0 % | 278 | 0.56 | – | 0.56 | 0.56, 0.56 |",
        "| spans | grpo, 50.0 % | never | no | no | no | no, no |",
        "| cells | 6 of 6 done |",
        "| tokens a cell | matrix 500 |",
    ):
        assert said in text, said
    assert "/tmp/" not in text.replace(str(path), "")


def test_the_same_cells_give_the_same_files(written):
    path, root, docs = written
    before = {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()}
    assert len(before) == 2
    for file in before:
        file.unlink()
    words = ["study", str(path), "--workdir", str(root), "--report-only"]
    assert cli.main(words) == 0
    assert {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()} == before


def test_figure(written):
    _, _, docs = written
    figure = xml.etree.ElementTree.parse(docs / "results" / "matrix.svg").getroot()
    texts = ["".join(node.itertext()) for node in figure.iter() if node.tag.endswith("text")]
    texts = [text.replace("\u202f", " ") for text in texts]
    labels = {"grpo 50.0 %", "rltf-sd 90.0 %", "spans 30.0 %", "floor 5.0 %", "tokens generated"}
    assert labels < set(texts)
    named = [text.rpartition(" ")[0].rpartition(" ")[0] for text in texts if text in labels]
    assert named[-4:] == ["rltf-sd", "grpo", "spans", "floor"]  # the best first
    lines = {node.get("id"): node.find(".//{*}path") for node in figure.iter()}
    lines = [lines[name] for name in ("grpo", "rltf-sd", "spans")]
    colors = {re.search("stroke: (#[0-9a-f]+)", line.get("style"))[1] for line in lines}
    assert len(colors) == 3
    ends = [float(line.get("d").split()[-1]) for line in lines]
    assert sorted(ends) == [ends[1], ends[0], ends[2]]  # the better, the higher
    assert all(0 < end < float(figure.get("viewBox").split()[-1]) for end in ends)


def test_without_matplotlib_the_extra_is_named_before_any_cell_runs(
    fake, study_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["study", str(study_file()), "--workdir", str(tmp_path / "cells")]) == 2
    error = capsys.readouterr().err
    assert "the figures of a study needs the package matplotlib: pip install " in error
    assert "[study]'" in error
    assert not (tmp_path / "cells").exists()
