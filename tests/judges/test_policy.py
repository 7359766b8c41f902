"""A judge that is a model: what it is asked, what it says, and what cannot be used."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transformers import LlamaConfig

from t2g_jax.data import trial
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.errors import ConfigError, T2GError
from t2g_jax.judges import Critique, CritiqueLevel, JudgeError
from t2g_jax.judges.cache import identity_of
from t2g_jax.judges.custom import make_judge
from t2g_jax.judges.guard import Guard
from t2g_jax.judges.policy import JSON_REQUEST, read_json
from t2g_jax.models import families, heads, huggingface
from t2g_jax.models.decoder import Decoder
from t2g_jax.phases import annotate, export
from t2g_jax.run import pretrained
from t2g_jax.spans import Quote
from t2g_jax.tasks import Example
from t2g_jax.tasks.base import CRITIQUE_REQUEST

TASK = types.SimpleNamespace(system="Be brief.")
ONE = Example("1", "What is 1 + 1?", "2", {})
BLAME = {"critique": "Wrong.", "quotes": [{"text": "Three", "reward": -1}]}
RIGHT, WRONG, ODD = "It is 2, as I see.", "Three: 3 3 3 3 3.", "Who knows, who cares, who asks?"
LEARNED = (
    (RIGHT, CRITIQUE_REQUEST, "Right."),
    (WRONG, CRITIQUE_REQUEST, "Wrong: count again."),
    (ODD, CRITIQUE_REQUEST, "no " * 60),
    (RIGHT, JSON_REQUEST, '{"critique": "Right."}'),
    (WRONG, JSON_REQUEST, json.dumps(BLAME)),
    (ODD, JSON_REQUEST, "I do not know."),
)
"""Answers, requests, and replies that the critic has learned by heart."""


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    """The folder of a small model that gives these replies."""
    folder = tmp_path_factory.mktemp("models") / "critic"
    train_tokenizer([" ".join(texts) for texts in LEARNED], 600, folder)
    tokenizer = ChatTokenizer.load(folder)
    trial.know(folder)
    described = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.end_id,
        architectures=["LlamaForCausalLM"],
    )
    (folder / "config.json").write_text(json.dumps(described.to_dict()))
    family, model = families.describe(folder)
    params = learned(tokenizer, model)
    huggingface.save_weights(folder, params, model, family, dtype=jnp.dtype("float32"))
    return folder


def learned(tokenizer, model):
    """Parameters that have seen nothing but `LEARNED`, until they know it."""
    asked, said = [], []
    for answer, request, reply in LEARNED:
        messages = [
            {"role": "system", "content": TASK.system},
            {"role": "user", "content": ONE.prompt},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": request},
        ]
        asked.append(tokenizer.render(messages))
        said.append(tokenizer.answer(reply))
    width = max(len(a) + len(s) for a, s in zip(asked, said, strict=True))
    tokens = np.full((len(asked), width), tokenizer.pad_id, np.int32)
    mask = np.zeros((len(asked), width), np.float32)
    for row, (a, s) in enumerate(zip(asked, said, strict=True)):
        tokens[row, : len(a) + len(s)] = [*a, *s]
        mask[row, len(a) : len(a) + len(s)] = 1
    positions = np.broadcast_to(np.arange(width), tokens.shape)
    optimizer = optax.adam(1e-2)

    def loss(params):
        hidden, _ = Decoder(model).apply(
            {"params": params["decoder"]}, tokens, positions, np.ones_like(tokens)
        )
        logits = hidden[:, :-1] @ heads.lm_kernel(params)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        found *= mask[:, 1:]
        return found.sum() / mask.sum(), found.max()

    @jax.jit
    def update(params, state):
        (_, worst), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, change), state, worst

    params = heads.init_params(model, jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(400):
        params, state, worst = update(params, state)
        if worst < 0.2:
            return params
    raise AssertionError(f"the critic has not learned its replies: {worst}")


def make(model, **settings):
    settings = {"model": str(model), "max_new_tokens": 48} | settings
    return make_judge("policy", TASK, CritiqueLevel.WHERE, settings)


def outcomes(judge, *answers, **limits):
    limits = {"timeout_seconds": 300.0} | limits
    return list(Guard(**limits).critiques(judge, [ONE] * len(answers), answers))


def test_it_says_in_words_what_it_learned_to_say(critic):
    found = outcomes(make(critic), WRONG, RIGHT, WRONG)
    assert found == [Critique("Wrong: count again."), Critique("Right."), found[0]]


def test_it_quotes_in_json(critic):
    judge = make(critic, form="json")
    wrong, right, unsure = outcomes(judge, WRONG, RIGHT, ODD, batch_size=2)
    assert wrong == Critique("Wrong.", (Quote("Three", -1.0),))
    assert right == Critique("Right.")
    assert (unsure.reason, unsure.details) == ("no JSON with a critique", "I do not know.")


def test_a_critique_that_does_not_end_is_none(critic):
    (failure,) = outcomes(make(critic), ODD)
    assert failure.reason == "critique is cut off"
    assert failure.details.startswith("no no no")


def test_one_that_leaves_no_room_fails_alone(critic):
    long, short = outcomes(make(critic), "3 " * 600, RIGHT)
    assert long.reason == "no room for a critique"
    assert "exceed the 512 positions of" in long.details
    assert short == Critique("Right.")


def test_a_request_of_ones_own(critic):
    assert outcomes(make(critic, request=JSON_REQUEST), RIGHT) == [
        Critique('{"critique": "Right."}')
    ]


def test_at_a_temperature_it_draws_the_same_in_any_company(critic):
    judge = make(critic, temperature=50.0)
    (one,) = outcomes(judge, WRONG)
    several = outcomes(judge, RIGHT, WRONG, ODD, WRONG, batch_size=3)
    assert str(several[1]) == str(several[3]) == str(one)
    assert str(one) != str(outcomes(make(critic), WRONG)[0])


def test_precision_and_template_are_settings(critic):
    judge = make(critic, dtype="bfloat16", template_options={"day": "Monday"})
    judge.prepare()
    assert {leaf.dtype for leaf in jax.tree.leaves(judge._params)} == {jnp.dtype("bfloat16")}
    assert judge._tokenizer._options == {"day": "Monday"}


def test_a_policy_of_ones_own_is_the_judge_of_a_run(tiny_run, tmp_path):
    exported = tmp_path / "exported"
    export.run(tiny_run.config, tiny_run.workdir, "rltf-fm", exported)
    values = {"judge__name": "policy", "judge__settings": {"model": str(exported)}}
    workdir, config = tiny_run.branch(
        tmp_path / "run", "sft", **values, judge__timeout_seconds=300.0
    )
    summary = annotate.run(config, workdir)
    done = sum(summary["records"].values())
    assert done + sum(summary["quarantined"].values()) == summary["judge"]["judge_calls"] == 16
    assert set(summary["quarantined"]) <= {"judge: critique is cut off", "judge: empty text"}
    bases = json.loads((workdir / "annotate" / "complete.json").read_text())["made"]["bases"]
    assert bases == {"judge.settings.model": pretrained.fingerprint(str(exported))}


def test_other_weights_are_another_judge(critic, tmp_path):
    def identity(judge):
        return identity_of(judge, "policy", "where", {"model": "here"})

    family, model = families.describe(critic)
    for file in critic.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = identity(make(tmp_path))
    assert identity(make(critic)) == before
    params = heads.init_params(model, jax.random.key(1))
    (tmp_path / "model.safetensors").unlink()
    huggingface.save_weights(tmp_path, params, model, family, dtype=jnp.dtype("float32"))
    assert identity(make(tmp_path)) != before


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"modle": 1}, "judge.settings: unknown key `modle`; did you mean `model`?"),
        ({"max_new_tokens": 0}, "judge.settings: `max_new_tokens` is 0; must be greater than 0"),
        ({"max_new_tokens": "8"}, '`max_new_tokens` is "8"; must be a valid integer'),
        ({"form": "xml"}, "`form` is \"xml\"; must be 'text' or 'json'"),
        ({"temperature": -1}, "`temperature` is -1; must be greater than or equal to 0"),
        ({"dtype": "int8"}, "`dtype` is \"int8\"; must be 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_it_has_not(critic, settings, expected):
    with pytest.raises(ConfigError) as caught:
        make(critic, **settings)
    assert expected in str(caught.value)


def test_without_a_model():
    with pytest.raises(ConfigError, match=r"judge.settings: `model` is missing"):
        make_judge("policy", TASK, CritiqueLevel.WHERE, {})


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(T2GError, match=r"judge.settings.model is 'nobody/nothing': there is no su"):
        make("nobody/nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(T2GError, match=r"judge.settings.model is .*file', a file; name the fold"):
        make(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"critique": "A."}', Critique("A.")),
        ('```json\n{"critique": "A.", "quotes": []}\n```', Critique("A.")),
        ('First {"critique": "Draft."}, better: {"critique": "A."} {}', Critique("A.")),
        (
            'In {1, 2}: {"critique": "A {b}.", "quotes": [{"text": "1", "reward": 0.5, '
            '"ordinal": 2, "before": "a"}], "reasoning": "so"}',
            Critique("A {b}.", (Quote("1", 0.5, 2, "a"),), "so"),
        ),
    ],
)
def test_json(text, expected):
    assert read_json(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON with a critique"),
        ("[1]", "no JSON with a critique"),
        ('{"text": "A."}', "no JSON with a critique"),
        ('{"critique": "A.", "quotes": [{"text": "1", "reward": 1}]', "no JSON with a critique"),
        ("{" * 100_000, "no JSON with a critique"),
        ('{"a": ' * 20_000, "no JSON with a critique"),
        ('{"critique": 3}', "JSON of another form"),
        ('{"critique": "A.", "score": 3}', "JSON of another form"),
        ('{"critique": "A.", "quotes": "1"}', "JSON of another form"),
        ('{"critique": "A.", "quotes": [{"text": "1"}]}', "JSON of another form"),
        ('{"critique": "A.", "quotes": [{"text": "1", "reward": NaN}]}', "JSON of another form"),
    ],
)
def test_json_that_is_no_critique(text, reason):
    with pytest.raises(JudgeError) as caught:
        read_json(text)
    assert caught.value.reason == reason
