"""Files of a work directory that are damaged: named, with the way out, and nothing else is lost."""

import html
import json
import re
import shutil

import pytest
from tiny import without_checksum

from t2g_jax.runtime import checked


def line(entry):
    """A line that is as it was written, whatever it says."""
    return checked.line(entry).decode()


@pytest.fixture
def annotated(tiny_run, tmp_path):
    """A work directory with a warm start and annotations."""
    return tiny_run.branch(tmp_path / "run", "sft", "annotate")


@pytest.fixture
def half_annotated(annotated):
    """As if annotation had been stopped half way: its folder has the first ten records only."""
    workdir, config = annotated
    folder = workdir / "annotate"
    shutil.rmtree(folder / "dataset")
    (folder / "complete.json").unlink()
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:10]))
    return workdir, config, folder / "journal.jsonl", lines


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ('{"id": "0-1-0", "prom\n', "journal.jsonl, line 3 is damaged ("),
        ("[1, 2]\n", "journal.jsonl, line 3 is damaged ("),
        ('{"id": "2-0"}\n', "journal.jsonl, line 3 is damaged (it has no checksum); "),
        (line({"prompt": "?"}), 'journal.jsonl, line 3: the entry has no "id" text'),
        (line({"id": "0-2-0"}), "journal.jsonl: the entry '0-2-0' is none of the "),
        (line({"id": "2-0"}), "journal.jsonl: the entry '2-0' is damaged ("),
    ],
)
def test_line_of_the_journal(t2g, half_annotated, damaged, expected):
    workdir, config, journal, lines = half_annotated
    whole = lines[:2] + [damaged] + lines[3:10]
    journal.write_text("".join(whole))
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    assert expected in outcome.error
    assert journal.read_text() == "".join(whole)  # nothing was changed, and nothing was sampled
    if damaged != "[1, 2]\n":
        return
    # What is advised works: the record is done again, the others are kept.
    journal.write_text("".join(lines[:2] + lines[3:10]))
    assert t2g("annotate", workdir, config).status == 0
    again = journal.read_text().splitlines(keepends=True)
    assert again[:9] == lines[:2] + lines[3:10]
    assert sorted(again) == sorted(lines)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", "good"),
        ("completion_tokens", None),
        ("completion_tokens", []),
        ("span_rewards", [1e39]),
        ("span_starts", [[0]]),
        ("prompt", 3),
        ("unaligned", 3),
    ],
)
def test_values_of_the_journal(t2g, half_annotated, field, value):
    workdir, config, journal, lines = half_annotated
    entry = json.loads(lines[2]) | {field: value}
    del entry["checksum"]
    journal.write_text("".join([*lines[:2], line(entry), *lines[3:10]]))
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    assert f"{journal}: the entry {entry['id']!r} is damaged (" in outcome.error
    assert "delete its line" in outcome.error


def test_a_last_line_that_was_cut_is_done_again(t2g, half_annotated):
    workdir, config, journal, lines = half_annotated
    journal.write_text("".join(lines[:9]) + lines[9][:40])
    assert t2g("annotate", workdir, config).status == 0
    assert sorted(journal.read_text().splitlines(keepends=True)) == sorted(lines)


def test_line_of_the_quarantine(t2g, half_annotated):
    workdir, config, journal, _ = half_annotated
    journal.with_name("quarantine.jsonl").write_text(line({}))
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    assert "quarantine.jsonl, line 1: the entry has no " in outcome.error


def shard(dataset, split):
    (found,) = dataset.glob(f"*{split}*.array_record*")
    return found


@pytest.mark.parametrize("how", ["cut", "empty", "missing", "overwritten"])
def test_shard_of_the_dataset(t2g, annotated, how):
    workdir, config = annotated
    path = shard(workdir / "annotate" / "dataset", "train")
    whole = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
        case "overwritten":
            third = len(whole) // 3
            path.write_bytes(whole[:third] + b"\xff" * third + whole[2 * third :])
    outcome = t2g("train-rm", workdir, config)
    assert outcome.status == 2
    assert str(path) in outcome.error
    folder = workdir / "annotate"
    assert f"Or delete {folder / 'dataset'} and {folder / 'complete.json'}" in outcome.error
    if how == "cut":
        # What is advised works: the journal is there, so nothing is sampled or judged again.
        journal = (folder / "journal.jsonl").read_bytes()
        shutil.rmtree(folder / "dataset")
        (folder / "complete.json").unlink()
        assert t2g("annotate", workdir, config).status == 0
        assert (folder / "journal.jsonl").read_bytes() == journal
        assert t2g("train-rm", workdir, config).status == 0


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "missing"])
def test_metadata_of_the_dataset(t2g, annotated, name, text):
    workdir, config = annotated
    path = workdir / "annotate" / "dataset" / name
    if text == "missing":
        path.unlink()
    else:
        path.write_text(text)
    outcome = t2g("train-rm", workdir, config)
    assert outcome.status == 2
    assert str(path.parent) in outcome.error
    assert name in outcome.error


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("sft/complete.json", "evaluate"),
        ("sft/complete.json", "sft"),
        ("sft/evaluation.json", "evaluate"),
        ("sft/evaluation.json", "report"),
    ],
)
def test_what_phases_leave(t2g, tiny_run, tmp_path, name, command, text):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    assert (workdir / name).exists()
    (workdir / name).write_text(text)
    outcome = t2g(command, workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"{workdir / name} is damaged (")
    assert "delete it" in outcome.error


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1.0"}'])
def test_tokenizer(t2g, tiny_run, tmp_path, text):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    (workdir / "tokenizer" / "tokenizer.json").write_text(text)
    outcome = t2g("evaluate", workdir, config)
    assert outcome.status == 2
    expected = f"{workdir}/sft was made with another tokenizer than the one in {workdir}/tokenizer"
    assert expected in outcome.error


def test_a_tokenizer_that_no_phase_knows(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run")
    (workdir / "tokenizer" / "tokenizer.json").write_text("{")
    outcome = t2g("sft", workdir, config)
    assert outcome.status == 2
    assert f"the tokenizer in {workdir / 'tokenizer'} cannot be read" in outcome.error


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/00000000.json"])
def test_what_the_report_reads(t2g, tiny_run, tmp_path, name):
    workdir, config = tiny_run.branch(
        tmp_path / "run", "sft", "annotate", "reward_model", "text2grad"
    )
    path = workdir / "text2grad" / name
    path.write_text("{\n" + path.read_text())
    outcome = t2g("report", workdir, config)
    assert outcome.status == 2
    assert str(path) in outcome.error


def test_config_of_the_work_directory(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    (workdir / "config.yaml").write_text("name: [")
    outcome = t2g("evaluate", workdir, config)
    assert outcome.status == 2
    assert f"{workdir / 'config.yaml'}, line 1: not valid YAML" in outcome.error


WRONG = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "not UTF-8": lambda text: text.replace("e", "\udcff"),
    "long integers": lambda text: re.sub(r"\d\b", "9" * 400, text),
    "large floats": lambda text: re.sub(r"\d\.\d+", "1e999", text),
    "no keys": lambda text: re.sub(r'"(\w+)":', r'"_\1":', text),
    "texts for numbers": lambda text: re.sub(r": -?[\d.e-]+", ': "many"', text),
    "a folder": None,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "sft/complete.json",
        "sft/evaluation.json",
        "grpo/complete.json",
        "grpo/evaluation.json",
        "grpo/metrics.jsonl",
        "grpo/samples/00000000.json",
    ],
)
def test_whatever_a_file_holds_the_report_says_so_in_a_line(t2g, tiny_run, tmp_path, name, wrong):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    path = workdir / name
    text = path.read_text()
    path.unlink()
    if WRONG[wrong] is None:
        path.mkdir()
    else:
        path.write_bytes(WRONG[wrong](text).encode("utf-8", "surrogateescape"))
    outcome = t2g("report", workdir, config)
    assert outcome.status == (0 if outcome.error == "" else 2)
    if (name, wrong) not in HARMLESS:
        assert outcome.status == 2
        assert str(path) in outcome.error
        # A configuration has a line for each problem.
        assert all(line.startswith(str(workdir)) for line in outcome.error.splitlines())


HARMLESS = {
    ("config.yaml", "empty"),
    ("config.yaml", "null"),
    *(("grpo/metrics.jsonl", wrong) for wrong in ("cut short", "empty", "deep", "null", "a list")),
    ("config.yaml", "no keys"),
}
"""The same, or nothing, said in YAML. A log may be empty, and its last line cut short."""


@pytest.mark.parametrize("name", ["reward", "kl", "test_accuracy", "tokens_generated_total"])
@pytest.mark.parametrize("value", ["high", True])
def test_what_is_drawn_is_a_number(t2g, tiny_run, tmp_path, name, value):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    path = workdir / "grpo" / "metrics.jsonl"
    first, second, *rest = path.read_text().splitlines()
    second = json.dumps(json.loads(second) | {name: value})
    path.write_text("\n".join([first, second, *rest, ""]))
    outcome = t2g("report", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"{path}, line 2 is damaged (`{name}` is {value!r}, and no ")


@pytest.mark.parametrize("key", ["seed", "sampling.temperature", "evaluate.checkpoint"])
@pytest.mark.parametrize("value", [None, "many", []])
def test_settings_of_an_evaluation(t2g, tiny_run, tmp_path, key, value):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    path = workdir / "sft" / "evaluation.json"
    score = without_checksum(path)
    score["settings"][key] = value if value != "many" or key != "evaluate.checkpoint" else 3
    if value is None:
        del score["settings"][key]
    path.write_text(json.dumps(score))
    outcome = t2g("report", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"{path} is damaged (`settings.{key}`: ")


def test_an_evaluation_without_its_settings(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    path = workdir / "sft" / "evaluation.json"
    score = without_checksum(path)
    del score["settings"]
    path.write_text(json.dumps(score))
    outcome = t2g("report", workdir, config)
    assert (outcome.status, outcome.error.startswith(f"{path} does not say with which")) == (
        2,
        True,
    )


@pytest.mark.parametrize("key", ["class_scores", "calibration", "judge", "class_weights"])
@pytest.mark.parametrize("value", [7, [{"label": "good"}], [3], {"judge_calls": "many"}])
def test_what_the_report_reads_of_a_phase(t2g, tiny_run, tmp_path, key, value):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "annotate", "reward_model")
    path = workdir / "reward_model" / "complete.json"
    path.write_text(json.dumps(without_checksum(path) | {key: value}))
    outcome = t2g("report", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"{path} is damaged (`{key}")


@pytest.mark.parametrize(
    ("name", "was", "then"),
    [
        ("grpo/complete.json", '"tokens_generated": ', '"tokens_generated": 1'),
        ("grpo/evaluation.json", '"accuracy": 0.', '"accuracy": 0.5'),
        ("grpo/evaluation.json", '"floor": 0.2', '"floor": 0.6'),
        ("grpo/samples/00000000.json", "boxed", "foxed"),
    ],
)
def test_what_is_whole_but_not_what_was_written(t2g, tiny_run, tmp_path, name, was, then):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    path = workdir / name
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, then, 1))
    outcome = t2g("report", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"{path} is damaged (its checksum is not ")


def test_a_log_that_is_not_what_was_written_is_marked(t2g, tiny_run, tmp_path, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    path = workdir / "grpo" / "metrics.jsonl"
    path.write_text(re.sub(r'"reward": [-\d.]+', '"reward": 0.75', path.read_text(), count=1))
    assert t2g("report", workdir, config).status == 0
    page = html.unescape((workdir / "report.html").read_text("utf-8"))
    assert f"grpo: {path} is not as it was when the phase ended" in page


def test_times_alone_differ_between_runs_that_do_the_same(tiny_run, tmp_path):
    found = without_checksum(tiny_run.workdir / "grpo" / "complete.json")
    slower = found | {"seconds": 9 * found["seconds"]}
    assert checked.checksum(slower) == checked.checksum(found)
    assert checked.checksum(slower | {"tokens_trained": 1}) != checked.checksum(found)
