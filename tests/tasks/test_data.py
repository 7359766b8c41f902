"""Rows of one's own: where they come from, what they may hold, and what becomes of bad ones."""

import gzip
import json

import pytest

from t2g_jax import user_code
from t2g_jax.errors import T2GError
from t2g_jax.tasks.base import JudgeError
from t2g_jax.tasks.data import make_data_task
from t2g_jax.tasks.rows import Quarantined


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, rows):
    """Rows as JSON lines; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    with open(path, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def sums(count, start=0):
    return [{"prompt": f"{n}+1?", "answer": n + 1} for n in range(start, start + count)]


def task(train="train.jsonl", **settings):
    return make_data_task({"train": train, **settings})


def ids(examples):
    return [example.id for example in examples]


def test_a_row_becomes_an_example(here):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": "2+2?", "answer": 4, "level": [1, {"a": None}]},
        {"prompt": chat, "id": 7, "feedback": "f", "demonstration": "d"},
        {"prompt": "é\ud83d\ude00", "answer": 0.5, "privileged_context": "p", "empty": None},
        {"prompt": "x", "demonstration": [{"role": "assistant", "content": "y"}]},
    ]
    write("train.jsonl", rows)
    write("test.jsonl", [{"prompt": "other", "answer": 3.0}])
    made = task(test="test.jsonl")
    first, second, third, fourth = made.split("train")
    assert (first.id, first.prompt, first.answer) == ("train.jsonl:1", "2+2?", "4")
    assert first.metadata == {"level": [1, {"a": None}], "answer": 4}, "as the row has it, too"
    assert (second.id, second.prompt, second.answer) == ("7", chat, "")
    assert second.metadata == {"feedback": "f", "demonstration": "d", "id": 7}
    assert (third.prompt, third.answer) == ("é😀", "0.5")
    assert third.metadata == {"privileged_context": "p", "answer": 0.5}
    assert fourth.metadata == {"demonstration": "y"}
    assert made.split("test")[0].answer == "3"
    assert made.quarantine == []
    assert made.columns["demonstration"] == 2


BAD = {
    "{bad": "not JSON: Expecting property name",
    "[1]": "list [1], not an object {…}",
    '{"prompt": NaN}': "NaN is no number of JSON",
    '{"question": "x"}': "no `prompt` (columns: question); task.settings.columns says which it is",
    '{"prompt": null}': "no `prompt`",
    '{"prompt": " "}': "`prompt` is empty",
    '{"prompt": 3}': "`prompt` is int 3; must be text or messages",
    '{"prompt": []}': "`prompt` has no messages",
    '{"prompt": ["x"]}': "message 1 of `prompt` is str 'x'",
    '{"prompt": [{"role": "user"}]}': "message 1 of `prompt` has role; must be role and content",
    '{"prompt": [{"role": "bot", "content": "x"}]}': "has the role 'bot'; must be one of system",
    '{"prompt": [{"role": "user", "content": 1}]}': "the content of message 1 of `prompt` is int 1",
    '{"prompt": [{"role": "assistant", "content": "x"}]}': "the last message of `prompt` is the",
    '{"prompt": [{"role": "user", "content": " "}]}': "`prompt` is empty",
    '{"prompt": "a", "answer": true}': "`answer` is bool True; must be text or a number",
    '{"prompt": "a", "answer": ["b"]}': "`answer` is list ['b']",
    '{"prompt": "a", "feedback": 1}': "`feedback` is int 1; must be text",
    '{"prompt": "a", "demonstration": ""}': "`demonstration` is empty; leave it out, or null",
    '{"prompt": "a", "id": 1.5}': "`id` is float 1.5; must be text or a whole number",
    '{"prompt": "a", "id": "twice"}': "id 'twice' is that of train.jsonl, line 1, too",
    '{"prompt": "a\\ud800"}': "half of a surrogate pair",
    '{"prompt": "a", "x": 1e999}': "the column `x` cannot be JSON",
    '{"prompt": "a", "answer": 1e999}': "`answer` is inf; must be finite, or null",
    '{"prompt": "a", "x": {"y": 1, "y": 2}}': "not JSON: the key 'y' occurs twice",
}


def test_every_malformed_row_is_set_aside_with_its_line(here):
    write("train.jsonl", [{"prompt": "first", "id": "twice"}, *BAD, "", {"prompt": "last"}])
    with open("train.jsonl", "ab") as file:
        file.write(b'{"prompt": "\xff"}\n{"prompt": "no end of line"}')
    made = task(test_size=1)
    assert len(made.split("train")) + len(made.split("test")) == 3
    assert [bad.line for bad in made.quarantine] == [*range(2, len(BAD) + 2), len(BAD) + 4]
    for bad, reason in zip(made.quarantine, [*BAD.values(), "not UTF-8 text"], strict=True):
        assert bad.source == "train.jsonl"
        assert reason in bad.reason
    (note,) = [note for note in made.notes() if note.startswith("Warning")]
    assert f"{len(BAD) + 1} rows cannot be used; the first is train.jsonl, line 2: not JSON" in note


def test_rows_that_cannot_be_rewarded_are_set_aside(here):
    write("train.jsonl", [*sums(4), {"prompt": "b"}, {"prompt": "c", "answer": "many"}])
    made = task(reward="numeric")
    assert [(bad.line, bad.reason[:13]) for bad in made.quarantine] == [
        (5, "no `answer`, "),
        (6, "`answer` hold"),
    ]


def test_no_usable_row_is_an_error(here):
    write("train.jsonl", ["{bad", '{"question": 1}'])
    with pytest.raises(T2GError, match=r"none of the 2 rows of train.jsonl can be used; the first"):
        task()
    write("train.jsonl", [])
    with pytest.raises(T2GError, match=r"task.settings.train: train.jsonl has no rows"):
        task()


def test_columns_are_mapped(here):
    write("train.jsonl", [{"question": f"q{i}", "solution": "s", "x": i} for i in range(4)])
    made = task(columns={"prompt": "question", "answer": "solution", "level": "x"}, test_size=1)
    example = made.split("test")[0]
    assert example.prompt.startswith("q")
    assert example.answer == "s"
    assert list(example.metadata) == ["level"]


def test_mapped_columns_must_be_there_and_be_alone(here):
    write("train.jsonl", [{"question": "q", "prompt": "p"}, {"other": 1}])
    with pytest.raises(T2GError, match="there is a column `prompt`, but `question` is to be it"):
        task(columns={"prompt": "question"})
    write("train.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
    with pytest.raises(T2GError, match="no row has the column `anwser`, which is to be `answer`"):
        task(columns={"answer": "anwser"})


def test_a_mapped_column_need_not_be_in_every_row(here):
    rows = [{"question": "a", "demo": "d"}, *({"question": f"q{i}"} for i in range(3)), {"demo": 1}]
    write("train.jsonl", rows)
    made = task(columns={"prompt": "question", "demonstration": "demo"}, test_size=1)
    assert (len(made.split("train")), made.columns["demonstration"]) == (3, 1)
    (bad,) = made.quarantine
    assert bad.reason == "there is no column `question`, which is to be `prompt`"


def test_a_name_for_a_column_that_means_nothing_is_told(here):
    write("train.jsonl", [{"prompt": f"p{i}", "x": "a"} for i in range(3)])
    (note,) = [n for n in task(columns={"anser": "x"}).notes() if "columns" in n]
    assert "'anser' has no meaning here; did you mean 'answer'?" in note
    (here / "wants.py").write_text("def anser(completions, anser): return [1.0 for _ in anser]\n")
    asked = task(columns={"anser": "x"}, reward="wants:anser")
    assert not [n for n in asked.notes() if "columns" in n]


def test_columns_may_change_places(here):
    write("train.jsonl", [{"prompt": f"a{i}", "answer": f"p{i}"} for i in range(3)])
    made = task(columns={"prompt": "answer", "answer": "prompt"}, test_size=1)
    example = made.split("train")[0]
    assert (example.prompt[0], example.answer[0]) == ("p", "a")


# --- Splits --------------------------------------------------------------------------------------


def test_a_share_is_held_out_always_the_same(here):
    write("train.jsonl", sums(100))
    made, again, other = task(), task(), task(seed=1)
    assert (len(made.split("train")), len(made.split("test"))) == (90, 10)
    assert ids(made.split("test")) == ids(again.split("test")) != ids(other.split("test"))
    assert not set(ids(made.split("train"))) & set(ids(made.split("test")))
    assert len(task(test_size=40).split("test")) == 40
    assert set(ids(made.split("test"))) < set(ids(task(test_size=40).split("test")))
    assert made.duplicates == 0


def test_a_prompt_is_in_one_split_only(here):
    write("train.jsonl", sums(10) * 3)
    made = task(test_size=4)
    train, test = ({e.prompt for e in made.split(name)} for name in ("train", "test"))
    assert len(test) == len(made.split("test")) == 4
    assert not train & test
    assert len(made.split("train")) == 18
    assert made.duplicates == 8
    assert any("8 training rows are left out" in note for note in made.notes())


def test_test_rows_are_never_trained_on(here):
    write("train.jsonl", sums(10))
    write("test.jsonl", [*sums(3, start=8), *sums(1, start=50)])
    made = task(test="test.jsonl")
    assert ids(made.split("train")) == [f"train.jsonl:{n}" for n in range(1, 9)]
    assert ids(made.split("test")) == [f"test.jsonl:{n}" for n in range(1, 5)]
    assert made.duplicates == 2
    # How many are evaluated on does not change what is trained on.
    fewer = task(test="test.jsonl", test_size=1)
    assert ids(fewer.split("train")) == ids(made.split("train"))
    assert ids(fewer.split("test")) == ["test.jsonl:1"]


def test_messages_are_prompts_that_may_repeat_too(here):
    chat = [{"role": "user", "content": "Hi"}]
    write("train.jsonl", [{"prompt": chat}, {"prompt": "Hi"}])
    write("test.jsonl", [{"prompt": list(chat)}])
    made = task(test="test.jsonl")
    assert ids(made.split("train")) == ["train.jsonl:2"]


def test_splits_that_leave_nothing(here):
    write("train.jsonl", sums(3))
    with pytest.raises(T2GError, match="nothing is left to train on"):
        task(test="train.jsonl")
    with pytest.raises(
        T2GError, match=r"test_size \(3\) must be less than the 3 different prompts"
    ):
        task(test_size=3)
    write("train.jsonl", sums(1) * 5)
    with pytest.raises(T2GError, match="all rows have the same prompt"):
        task()
    write("train.jsonl", [*sums(1), {"prompt": 3}])
    with pytest.raises(T2GError, match=r"1 row cannot be used; the first is train.jsonl, line 2"):
        task()


def test_a_file_named_twice_is_not_read_twice(here):
    write("train.jsonl", sums(4))
    made = task(["train.jsonl", "train.jsonl"], test_size=1)
    assert len(made.split("train")) + len(made.split("test")) == 4
    assert made.quarantine[0].reason == "id 'train.jsonl:1' is that of train.jsonl, line 1, too"


def test_an_id_is_of_one_row_among_all_files(here):
    write("a.jsonl", [{"prompt": "p", "id": "x"}, {"prompt": "q"}])
    write("b.jsonl", [{"prompt": "r", "id": "x"}])
    (bad,) = task(["a.jsonl", "b.jsonl"], test_size=1).quarantine
    assert (bad.source, bad.reason) == ("b.jsonl", "id 'x' is that of a.jsonl, line 1, too")


def test_rows_are_the_same_from_whatever_folder(here, monkeypatch):
    for name in ("a", "b"):
        (here / name).mkdir()
        write(here / name / "rows.jsonl", sums(3, start=10 * ord(name)))
    monkeypatch.setattr(user_code, "_folders", [])
    made = task(["a/rows.jsonl", "b/rows.jsonl"], test_size=1)
    of_all = {*ids(made.split("train")), *ids(made.split("test"))}
    assert of_all == {f"rows.jsonl{n}:{i}" for n in ("", "#2") for i in (1, 2, 3)}
    user_code.look_in(here)
    monkeypatch.chdir("/")
    again = task(["a/rows.jsonl", "b/rows.jsonl"], test_size=1)
    assert again.fingerprint == made.fingerprint
    assert ids(again.split("train")) == ids(made.split("train"))


def test_other_rows_have_another_fingerprint(here):
    write("train.jsonl", sums(5))
    before = task().fingerprint
    assert task().fingerprint == before
    write("train.jsonl", [*sums(4), {"prompt": "4+1?", "answer": 6}])
    assert task().fingerprint != before


def test_rows_that_change_meanwhile_change_nothing(here):
    write("train.jsonl", sums(5))
    train = task().split("train")
    before = list(train)
    write("train.jsonl", sums(5, start=70))
    assert list(train) == before
    assert train[1:3] == before[1:3]
    assert train[-1] == before[-1]
    with pytest.raises(IndexError):
        train[len(train)]


# --- Sources -------------------------------------------------------------------------------------


def test_files_beside_the_config_patterns_and_gzip(here, monkeypatch):
    folder = here / "config"
    folder.mkdir()
    monkeypatch.setattr(user_code, "_folders", [])
    write(folder / "a-1.jsonl", sums(2))
    write(folder / "a-2.jsonl", sums(2, start=5))
    with gzip.open("b.jsonl.gz", "wt") as file:
        file.write('\ufeff{"prompt": "z"}\n')
    with pytest.raises(T2GError, match=r"task\.settings\.train: there is no file a-\*.jsonl"):
        task("a-*.jsonl")
    user_code.look_in(folder)
    made = task(["a-*.jsonl", "b.jsonl.gz"], test="a-1.jsonl")
    assert [e.prompt for e in made.split("train")] == ["5+1?", "6+1?", "z"]


def test_a_file_that_cannot_be_read(here):
    (here / "train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(T2GError, match=r"train.jsonl.gz"):
        task("train.jsonl.gz")
    whole = bytearray(gzip.compress(b'{"prompt": "x"}\n' * 500))
    for place in range(10, len(whole) - 8):  # of the compressed rows themselves
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        (here / "train.jsonl.gz").write_bytes(damaged)
        with pytest.raises(T2GError, match=r"train.jsonl.gz"):
            task("train.jsonl.gz")
    (here / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(T2GError, match=r"train.parquet cannot be read as Parquet"):
        task("train.parquet")
    (here / "train.json").write_text('[{"prompt": "x"}]')
    with pytest.raises(T2GError, match="is a JSON array; write one object on each line"):
        task("train.json")
    (here / "train.csv").write_text("prompt\nx")
    with pytest.raises(T2GError, match=r"rows are read from \.jsonl"):
        task("train.csv")
    with pytest.raises(T2GError, match=r"task\.settings\.train: there is no file missing\.jsonl"):
        task("missing.jsonl")
    with pytest.raises(T2GError, match=r"there is no folder \./missing"):
        task("./missing")


def test_parquet(here):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "prompt": [{"role": "user", "content": f"q{i}"}],
            "answer": float(i),
            "when": datetime.date(2026, 1, 1),
            "raw": b"text",
        }
        for i in range(3000)
    ]
    rows[1]["raw"] = b"\xff"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "train.parquet")
    made = task("train.parquet", test_size=10, reward="numeric")
    assert made.quarantine == [
        Quarantined(
            "train.parquet",
            2,
            "the column `raw` cannot be JSON: Object of type bytes is not JSON serializable",
        )
    ]
    last = made.split("train")[-1]
    assert last.id == "train.parquet:3000"
    assert last.prompt == [{"role": "user", "content": "q2999"}]
    assert last.answer == "2999"
    assert last.metadata == {"when": "2026-01-01", "raw": "text", "answer": 2999.0}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TFDS dataset of two splits, without TensorFlow."""
    import numpy as np

    from t2g_jax.data.dataset import write_dataset
    from t2g_jax.data.records import AnnotationRecord

    def record(name):
        return AnnotationRecord(
            id=name,
            prompt_id=name,
            prompt=f"{name}?",
            prompt_tokens=np.array([1, 2]),
            completion="x",
            completion_tokens=np.array([3]),
            completion_logprobs=np.array([-1.0]),
            critique="good",
            judge="j",
            reward=1.0,
            correct=True,
            span_starts=np.array([0]),
            span_ends=np.array([1]),
            span_rewards=np.array([1.0]),
        )

    splits = {"train": map(record, "abcdef"), "test": map(record, "xy")}
    return write_dataset(
        tmp_path_factory.mktemp("tfds") / "made",
        splits,
        name="made",
        description="rows",
        metadata={},
    )


def test_a_folder_of_tfds(tfds_folder):
    made = task(
        str(tfds_folder), test=str(tfds_folder), columns={"answer": "completion"}, reward="exact"
    )
    assert [e.prompt for e in made.split("train")] == [f"{c}?" for c in "abcdef"]
    assert ids(made.split("test")) == ["x", "y"]
    assert made.split("train")[0].metadata["prompt_tokens"] == [1, 2]
    part = task({"source": str(tfds_folder), "split": "train[:4]"}, test_size=1)
    assert len(part.split("train")) == 3
    with pytest.raises(T2GError, match=r"split 'no_such' cannot be had"):
        task({"source": str(tfds_folder), "split": "no_such"})


def test_a_name_that_tfds_does_not_know(here):
    with pytest.raises(T2GError, match="TFDS dataset 'no_such_rows', split 'train' cannot be had"):
        task("no_such_rows")


def test_a_folder_of_hugging_face_datasets(here):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": f"q{i}", "answer": str(i)} for i in range(6)])
    rows.save_to_disk("alone")
    datasets.DatasetDict(train=rows, validation=rows.select([0, 1])).save_to_disk("both")
    assert len(task("hf:alone", test_size=2, reward="exact").split("train")) == 4
    made = task("both", test={"source": "both", "split": "validation"})
    assert [e.prompt for e in made.split("test")] == ["q0", "q1"]
    assert made.duplicates == 2
    pictures = datasets.Features(prompt=datasets.Value("string"), seen=datasets.Image())
    bad = {"prompt": ["q"], "seen": [{"bytes": b"no picture", "path": None}]}
    datasets.Dataset.from_dict(bad, features=pictures).save_to_disk("pictures")
    with pytest.raises(T2GError, match=r"the row 1 of pictures\[train\] cannot be had"):
        task("hf:pictures")
    with pytest.raises(T2GError, match="is a dataset without splits"):
        task({"source": "alone", "split": "train"})
    with pytest.raises(T2GError, match=r"dataset 'both', split 'test' cannot be had"):
        task("both", test="both")


def test_without_datasets_the_extra_is_named(here, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(T2GError, match=r"which is not installed: pip install .*\[datasets\]"):
        task("owner/name")


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the task `data` needs `train`"),
        ({"trian": "x"}, "has no setting 'trian'; did you mean 'train'?"),
        ({"train": 3}, "task.settings.train is int 3; give a file or dataset"),
        ({"train": {"split": "x"}}, "give a file or dataset, or a mapping with `source`"),
        ({"train": {"source": "a.jsonl", "sep": ","}}, "has no option 'sep'; known: source, split"),
        ({"train": {"source": "train.jsonl", "split": "x"}}, "is a file, and has no split"),
        ({"train": []}, "task.settings.train is empty"),
        ({"train": "train.jsonl", "columns": ["a"]}, "give a mapping such as {prompt: question}"),
        (
            {"train": "train.jsonl", "columns": {"prompt": 1}},
            "columns.prompt is int 1; must be text",
        ),
        ({"train": "train.jsonl", "test_size": 0}, "test_size is int 0; must be a whole number"),
        ({"train": "train.jsonl", "seed": "1"}, "seed is str '1'; must be a whole number from 0"),
        ({"train": "train.jsonl", "system": 1}, "system is int 1; must be text"),
        ({"train": "train.jsonl", "reward": "exakt"}, "did you mean 'exact'?"),
    ],
)
def test_bad_settings_are_named(here, settings, said):
    write("train.jsonl", sums(5))
    with pytest.raises(T2GError) as caught:
        make_data_task(settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# --- What rows can do ----------------------------------------------------------------------------


def test_feedback_and_privileged_context_are_what_the_tasks_judge_says(here):
    rows = [
        {"prompt": "a", "feedback": "Again."},
        {"prompt": "b", "privileged_context": "It is 3."},
        {"prompt": "c", "feedback": "Again.", "privileged_context": "It is 3."},
        {"prompt": "d"},
    ]
    write("train.jsonl", rows)
    write("test.jsonl", [{"prompt": "other"}])
    made = task(test="test.jsonl")
    judge = made.judge(None)
    said = [judge.critique(example, "?").text for example in made.split("train")[:3]]
    assert said == ["Again.", "It is 3.", "Again.\n\nIt is 3."]
    with pytest.raises(JudgeError, match="no feedback"):
        judge.critique(made.split("train")[3], "?")
    write("train.jsonl", rows[3:])
    assert task(test="test.jsonl").judge is None


def test_the_floor_is_the_most_frequent_answer(here):
    write("train.jsonl", sums(3))
    rows = [{"prompt": f"t{i}", "answer": "yes" if i < 3 else "no"} for i in range(4)]
    write("test.jsonl", rows)
    made = task(test="test.jsonl", reward="exact")
    assert made.floor(made.split("test")).accuracy == 0.75
    graded = task(test="test.jsonl", reward={"name": "exact", "correct_from": None})
    assert graded.floor(graded.split("test")) is None
    assert task(test="test.jsonl").floor(made.split("test")) is None


def test_second_attempts_are_shown_answers_that_the_reward_calls_right(here):
    rows = [*sums(3), {"prompt": "no answer", "demonstration": "4"}]
    write("train.jsonl", rows)
    write("test.jsonl", [{"prompt": "other", "answer": "1"}])
    (here / "own.py").write_text(
        "def right(completions, answer, **_):\n"
        "    return [float(c == str(a) != '2') for c, a in zip(completions, answer)]\n"
    )
    reward = {"name": "own:right", "correct_from": 1}
    made = task(test="test.jsonl", reward=reward)
    assert [made.solve(example) for example in made.split("train")] == ["1", None, "3", None]
    assert task(test="test.jsonl", reward="own:right").solve is None, "it only grades"
    assert task(test="test.jsonl").solve is None, "nobody says what is right"
    write("train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert task(test="test.jsonl", reward=reward).solve is None, "there are no answers"


def test_a_reward_is_asked_at_once_for_columns_that_no_row_has(here):
    (here / "asking.py").write_text(
        "def x(completions, x): return [0.0 if v is None else v for v in x]\n"
        "def answer(completions, answer): return [1.0 for _ in answer]\n"
    )
    write("train.jsonl", [{"prompt": f"p{i}"} for i in range(4)])
    for name in ("x", "answer"):
        with pytest.raises(T2GError, match=f"asks for `{name}`, which the rows do not have"):
            task(reward=f"asking:{name}")
    write("train.jsonl", [{"prompt": f"p{i}"} | ({"x": 2} if i % 2 else {}) for i in range(4)])
    made = task(reward="asking:x", test_size=1)
    without = [example for example in made.split("train") if "x" not in example.metadata]
    assert {score.reward for score in made.score_batch(without, ["?"] * len(without))} == {0.0}


def test_a_reward_gets_numbers_as_the_rows_have_them(here):
    (here / "exactly.py").write_text(
        "def equal(completions, answer, id):\n"
        "    return [float(int(c) == a and i == 7) for c, a, i in zip(completions, answer, id)]\n"
    )
    write("train.jsonl", [{"prompt": f"p{i}", "answer": i, "id": 7 + i} for i in range(3)])
    made = task(reward="exactly:equal", test_size=1)
    by_id = {example.id: example for name in ("train", "test") for example in made.split(name)}
    assert made.score_batch([by_id["7"]], ["0"])[0].reward == 1.0
    assert made.score_batch([by_id["8"]], ["1"])[0].reward == 0.0
