"""Reading files that are not what they should be: one line, with the file and what is wrong."""

import pytest
from typing_extensions import TypedDict

from t2g_jax.errors import T2GError
from t2g_jax.runtime.files import expanded, read_json, read_jsonl, read_text


class Shape(TypedDict):
    phase: str
    steps: list[int]
    share: float


GOOD = b'{"phase": "sft", "steps": [1, 2], "share": 1, "more": null}'
BAD = [
    (b"", "Expecting value"),
    (GOOD[:20], "damaged ("),
    (b"\xff\xfe", "it is not UTF-8 text"),
    (b"\0" * 40, "Expecting value"),
    (b"null", "should be a valid dictionary"),
    (b"[]", "should be a valid dictionary"),
    (GOOD.replace(b'"phase"', b'"phases"'), "`phase`: field required"),
    (GOOD.replace(b'"sft"', b"3"), "`phase`: input should be a valid string"),
    (GOOD.replace(b"[1, 2]", b"[1, true]"), "`steps.1`: input should be a valid integer"),
    (GOOD.replace(b"[1, 2]", b"7"), "`steps`: input should be a valid list"),
    (GOOD.replace(b"[1, 2]", b"[" + b"9" * 400 + b"]"), "an integer of 400 digits"),
    (GOOD.replace(b"[1, 2]", b"[" + b"9" * 5000 + b"]"), "an integer of 5000 digits"),
    (GOOD.replace(b": 1,", b": 1e400,"), "1e400 is too large"),
    (GOOD.replace(b": 1,", b": NaN,"), "NaN is no number of JSON"),
    (GOOD.replace(b": 1,", b": -Infinity,"), "-Infinity is no number of JSON"),
    (b"[" * 200_000, "nested too deep"),
    (b'{"a": ' * 200_000, "nested too deep"),
]


def error_of(read):
    with pytest.raises(T2GError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("; delete it")
    return message


@pytest.mark.parametrize(("data", "expected"), BAD)
def test_json_that_was_not_written_so(tmp_path, data, expected):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    message = error_of(lambda: read_json(path, Shape, mend="delete it"))
    assert message.startswith(f"{path} is damaged (")
    assert expected in message


def test_keys_that_nobody_reads_are_let_through(tmp_path):
    (tmp_path / "a.json").write_bytes(GOOD)
    assert read_json(tmp_path / "a.json", Shape)["more"] is None


@pytest.mark.parametrize(("data", "expected"), BAD[3:])
def test_lines(tmp_path, data, expected):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + data + b"\n" + GOOD)
    message = error_of(lambda: list(read_jsonl(path, Shape, mend="delete it")))
    assert message.startswith(f"{path}, line 2 is damaged (")
    assert expected in message


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD[:9])
    assert [number for number, _ in read_jsonl(path, Shape)] == [1]


@pytest.mark.parametrize("read", [read_json, read_text, lambda *a, **k: list(read_jsonl(*a, **k))])
def test_what_is_no_file(tmp_path, read):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, expected in (
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "a.json", "Not a directory"),
        (tmp_path / "none.json", "No such file or directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
    ):
        message = error_of(lambda path=path: read(path, mend="delete it"))
        assert message.startswith(f"{path}: cannot be read: {expected}")


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a"
    assert expanded("a/~") == type(tmp_path)("a/~")
    with pytest.raises(T2GError, match="no such home folder"):
        expanded("~no-such-user/a")
