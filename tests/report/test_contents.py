import dataclasses
import json
import math

import numpy as np
import pytest

from t2g_jax.report.contents import (
    Curve,
    PhaseTime,
    Report,
    ResultRow,
    Retry,
    Sample,
    TokenCell,
)


def test_json_round_trip_gives_the_same_report(sample_report):
    report = dataclasses.replace(sample_report(), curves=sample_report().curves[:4])
    assert Report.from_json(report.to_json()) == report
    empty = Report("nothing yet")
    assert Report.from_json(empty.to_json()) == empty


def test_json_is_strict_and_keeps_numbers_that_are_not_finite():
    curve = Curve("a", "loss", "steps", (0.0, 1.0, 2.0), (math.nan, math.inf, -math.inf))
    row = ResultRow("m", "t", 0.1, (0.0, 0.2), 0.5, (0.4, 0.6), math.nan, "", 1, 2, 3.0)
    text = Report("r", curves=(curve,), results=(row,)).to_json()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=refuse)
    back = Report.from_json(text)
    assert math.isnan(back.curves[0].values[0])
    assert back.curves[0].values[1:] == (math.inf, -math.inf)
    assert math.isnan(back.results[0].floor)


def test_array_scalars_become_plain_numbers():
    text = Report("r", phases=(PhaseTime("learn", np.float32(1.5)),)).to_json()
    assert Report.from_json(text).phases == (PhaseTime("learn", 1.5),)


def test_missing_token_values_stay_missing():
    sample = Sample("s", "p", "c", None, 0.5, (TokenCell(" a"), TokenCell("b", 0.0, None, -2.0)))
    text = Report("r", samples=(sample,)).to_json()
    assert json.loads(text)["samples"][0]["tokens"][0] == {"text": " a"}
    assert Report.from_json(text).samples == (sample,)


def test_conversations_survive_and_what_is_not_there_is_not_written():
    retry = Retry((TokenCell("b"),), 1.0)
    sample = Sample("s", "p", "c", None, 0.5, (), correct=False, retries=(retry,))
    text = Report("r", samples=(sample,)).to_json()
    (written,) = json.loads(text)["samples"]
    assert written["retries"] == [{"tokens": [{"text": "b"}], "reward": 1.0}]
    assert not {"method", "step"} & set(written)
    assert Report.from_json(text).samples == (sample,)
    for name in ("correct", "retries"):
        del written[name]
    assert Report.from_json(json.dumps({"title": "r", "samples": [written]})).samples == (
        dataclasses.replace(sample, correct=None, retries=()),
    )


def test_half_a_surrogate_pair_does_not_stop_the_report():
    sample = Sample("s", "p", "bad \ud83d half", None, 0.0, ())
    back = Report.from_json(Report("r", samples=(sample,)).to_json().encode("utf-8"))
    assert back.samples[0].critique.startswith("bad \ufffd")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"title": "r", "phases": [{"phase": "x", "secnds": 1}]}', ["secnds", "'seconds'"]),
        ('{"title": "r", "phases": [{"phase": "x", "seconds": "long"}]}', ["phases.0.seconds"]),
        ('{"subtitle": "no title"}', ["title"]),
        ('{"title": ', ["is damaged (Expecting value"]),
        (
            '{"title": "r", "curves": [{"label": "a", "metric": "m", "x_label": "s", '
            '"steps": [1, 2], "values": [1]}]}',
            ["curves.0", "2 steps but 1 values"],
        ),
    ],
)
def test_errors_name_the_file_the_key_and_the_fix(text, names):
    with pytest.raises(ValueError, match=r"run7/report\.json") as error:
        Report.from_json(text, source="run7/report.json")
    for name in names:
        assert name in str(error.value)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenCell("a").text = "b"
