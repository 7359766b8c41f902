"""Records keep their precision through every form, and what is wrong with one is named."""

import dataclasses
import json

import numpy as np
import pytest

from t2g_jax.data.records import AnnotationRecord, validate
from t2g_jax.errors import T2GError


def make(**changes):
    fields = {
        "id": "train-7/0",
        "prompt_id": "train-7",
        "prompt": "Qu'est-ce que 6 × 7 ?",
        "prompt_tokens": [1, 2, 3],
        "completion": "42 \N{SNOWMAN}",
        "completion_tokens": [5, 6, 7, 8],
        "completion_logprobs": [-0.1, -0.2, -0.3, 0.0],
        "critique": "Right.",
        "judge": "programmatic",
        "reward": 0.9,
        "correct": True,
        "span_starts": [0, 2],
        "span_ends": [2, 4],
        "span_rewards": [1.0, -0.5],
        "unaligned": ["43: not in the completion"],
    }
    return AnnotationRecord(**fields | changes)


def test_values_are_held_as_they_are_stored():
    record = make()
    assert record.prompt_tokens.dtype == record.span_ends.dtype == np.int32
    assert record.completion_logprobs.dtype == record.span_rewards.dtype == np.float32
    assert record.reward == float(np.float32(0.9))
    assert record.unaligned == ("43: not in the completion",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.reward = 1.0


def test_round_trips():
    for record in (make(), make(span_starts=[], span_ends=[], span_rewards=[], unaligned=[])):
        validate(record)
        assert AnnotationRecord.from_example(record.to_example()) == record
        assert AnnotationRecord.from_example(json.loads(json.dumps(record.to_json()))) == record


def test_bytes_are_read_as_utf8():
    example = make().to_example()
    for name, value in example.items():
        if isinstance(value, str):
            example[name] = value.encode()
    example["unaligned"] = [text.encode() for text in example["unaligned"]]
    assert AnnotationRecord.from_example(example) == make()


def test_equality_sees_every_field():
    others = {
        "prompt_tokens": [1, 2, 4],
        "completion_logprobs": [],
        "reward": 0.8,
        "correct": False,
        "span_ends": [2, 3],
        "unaligned": (),
        "critique": "Wrong.",
    }
    for name, value in others.items():
        assert make(**{name: value}) != make(), name
    assert make() != "record"


def test_missing_and_unknown_fields_are_named():
    example = make().to_example()
    del example["judge"]
    with pytest.raises(T2GError, match=r"'train-7/0': missing fields \['judge'\]"):
        AnnotationRecord.from_example(example)
    with pytest.raises(T2GError, match=r"unknown fields \['color'\]"):
        AnnotationRecord.from_example(make().to_example() | {"color": 1})


def test_imported_text_has_no_logprobs():
    validate(make(completion_logprobs=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"critique": None}, "critique is NoneType; pass text"),
        ({"critique": "half \ud83d"}, "critique has half a surrogate pair"),
        ({"unaligned": ["\udc00"]}, "unaligned has half a surrogate pair"),
        ({"prompt_tokens": []}, "prompt_tokens is empty"),
        ({"completion_tokens": [], "completion_logprobs": []}, "completion_tokens is empty"),
        ({"completion_tokens": [5, 6, 7, -1]}, "completion_tokens holds the token -1"),
        ({"completion_tokens": [[5, 6, 7, 8]]}, r"completion_tokens has shape \[1, 4\]"),
        ({"completion_logprobs": [-1.0]}, "completion_logprobs has 1 values for 4"),
        ({"completion_logprobs": [-1, -1, -1, -np.inf]}, "completion_logprobs is not finite"),
        ({"completion_logprobs": [-1, -1, -1, 0.1]}, "completion_logprobs holds 0.1; a log-prob"),
        ({"completion_logprobs": ["-1"] * 4}, "completion_logprobs holds <U2, not numbers"),
        ({"reward": float("nan")}, "reward is not finite"),
        ({"reward": 10**400}, "reward holds object, not numbers"),
        ({"reward": True}, "reward holds bool, not numbers"),
        ({"correct": "no"}, "correct is 'no'; pass true, false or None"),
        ({"correct": 1}, "correct is 1; pass true, false or None"),
        ({"span_rewards": [1.0, np.nan]}, "span_rewards is not finite"),
        ({"span_rewards": [1.0]}, "span_rewards has 1 values for 2 span_starts"),
        ({"span_ends": [2]}, "span_ends has 1 values for 2 span_starts"),
        ({"span_ends": [2, 5]}, r"span_starts, span_ends hold \[2, 5\), not a span of 4"),
        ({"span_starts": [2, 2]}, r"hold \[2, 2\)"),
        ({"span_starts": [-1, 2]}, r"hold \[-1, 2\)"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(T2GError, match=message) as error:
        validate(make(**changes))
    assert repr(changes.get("id", "train-7/0")) in str(error.value)
    assert ";" in str(error.value)  # says what to do


def test_tokens_are_those_of_the_tokenizer():
    validate(make(), vocabulary=9)
    with pytest.raises(
        T2GError, match="completion_tokens holds the token 8, but the tokenizer has 8"
    ):
        validate(make(), vocabulary=8)


@pytest.mark.parametrize("tokens", [[1.5], [1.0], [2**31], ["a"], [True]])
def test_integers_are_not_rounded(tokens):
    with pytest.raises(T2GError, match=r"int32|not whole numbers"):
        make(prompt_tokens=tokens)
