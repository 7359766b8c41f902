"""Rows made with the tokenizers of the families: what is learned, what is masked, what is read."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny
from family_tokenizers import FAMILIES, byte_template, qwq

from t2g_jax.config import Config, ModelConfig
from t2g_jax.errors import T2GError
from t2g_jax.feedback.reward_model import critique_request, reward_model_row
from t2g_jax.phases import reward_model, sft
from t2g_jax.run import pretrained
from t2g_jax.run.context import Context
from t2g_jax.tasks.base import Critique
from t2g_jax.training.batch import pack
from t2g_jax.training.terms import NLL_WEIGHT

TOKENIZERS = {name: family.make() for name, family in FAMILIES.items()}
CRITIQUE = Critique("Row 2 is wrong.")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def context(family, tiny_context):
    """The tiny run with a family's tokenizer, and room enough."""
    model = dataclasses.replace(tiny_context.config.model, context_length=4096)
    config = dataclasses.replace(tiny_context.config, model=model)
    return dataclasses.replace(tiny_context, tokenizer=TOKENIZERS[family], config=config)


@pytest.fixture
def example(context):
    return context.task.split("train")[0]


def test_the_end_of_every_answer_is_learned_even_where_padding_is_the_same_token(context, example):
    tokenizer = context.tokenizer
    row = sft.demonstration(context, example, "The cat", CRITIQUE)
    first = [*tokenizer.encode("The cat"), tokenizer.end_id]
    second = [*tokenizer.encode(context.task.solve(example)), tokenizer.end_id]
    asked = tokenizer.next_turn(CRITIQUE.text, ended=True)
    parts = [context.prompts.render(example.prompt), first, asked, second]
    assert row.tokens.tolist() == [i for part in parts for i in part]
    # Weights by the counts of tokens alone.
    weights = [[0.0] * len(parts[0]), [1.0] * len(first), [0.0] * len(asked), [1.0] * len(second)]
    assert row.fields["nll_weight"].tolist() == [w for part in weights for w in part]
    for answer in (first, second):
        assert answer[-1] == tokenizer.end_id

    # Padding changes nothing of that, whatever token it is.
    length = len(row) + 7
    batch = pack([row], length=length, fields=(NLL_WEIGHT,))
    learned = np.asarray(batch[NLL_WEIGHT])[0] > 0
    targets = np.asarray(batch.targets)[0][learned].tolist()
    assert targets == [*first, *second]
    assert not learned[len(row) - 1 :].any()
    assert np.asarray(batch.segment_ids)[0].tolist() == [1] * len(row) + [0] * 7


def test_some_family_pads_with_its_end_token():
    same = [name for name, t in TOKENIZERS.items() if t.pad_id == t.end_id]
    assert {"llama2", "llama3", "mistral"} <= set(same)


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_parts_of_a_reward_model_row_are_found_by_counting(context, example, conditioned):
    tokenizer = context.tokenizer
    prompt = context.prompts.render(example.prompt)
    # As sampled: letters one by one, and an end; or cut before it.
    letters = [i for letter in "The cat sat" for i in tokenizer.encode(letter)]
    critique = [*tokenizer.encode(CRITIQUE.text), tokenizer.end_id]
    for completion in ([*letters, tokenizer.end_id], letters):
        labels = np.arange(len(completion)) % 3 - 1.0
        row = reward_model_row(
            tokenizer,
            (prompt, completion),
            conditioned=conditioned,
            critique=critique,
            labels=labels,
        )
        request = critique_request(tokenizer, completion)
        at = len(prompt)
        if not conditioned:
            assert row.tokens[at : at + len(completion)].tolist() == completion
        else:
            at = len(row) - len(completion)
            assert row.tokens[at:].tolist() == completion
        marked = np.flatnonzero(row.fields["span_weight"])
        assert marked.tolist() == list(range(at, at + len(completion)))
        assert row.fields["span_labels"][marked].tolist() == labels.tolist()
        said = np.flatnonzero(row.fields["nll_weight"])
        start = len(prompt) + len(completion) + len(request)
        assert said.tolist() == list(range(start, start + len(critique)))
        assert row.tokens[said].tolist() == critique


def test_the_system_prompt_of_a_task_is_in_every_prompt(context, example, monkeypatch):
    tokenizer = context.tokenizer
    text = tokenizer.decode(context.prompts.render(example.prompt), skip_special=False)
    assert example.prompt.strip() in text
    assert "Think first." not in text
    monkeypatch.setattr(context.task, "system", "Think first.")
    text = tokenizer.decode(context.prompts.render(example.prompt), skip_special=False)
    assert text.index("Think first.") < text.index(example.prompt.strip())
    assert text.count("Think first.") == 1


# What the config says of the template, and templates that do not serve


def opened(tiny_run, folder, tokenizer, **options):
    """The tiny run's context with another tokenizer in its work folder."""
    workdir, config = tiny_run.branch(folder, tokenizer__template_options=options)
    shutil.rmtree(workdir / "tokenizer")
    tokenizer.save(workdir / "tokenizer")
    return Context.open(config, workdir)


def test_the_options_of_the_config_reach_the_template(tiny_run, tmp_path):
    tokenizer = TOKENIZERS["qwen3"]
    thinking = opened(tiny_run, tmp_path / "a", tokenizer)
    quick = opened(tiny_run, tmp_path / "b", tokenizer, enable_thinking=False)
    opening = quick.tokenizer.encode("<think>\n\n</think>\n\n")
    assert quick.prompts.render("The cat") == [*thinking.prompts.render("The cat"), *opening]
    # And so it is where a turn follows another.
    assert quick.tokenizer.next_turn("again", ended=True)[-len(opening) :] == opening


def test_what_ends_a_completion_is_kept_with_the_tokenizer(tiny_run, tmp_path):
    context = opened(tiny_run, tmp_path / "a", TOKENIZERS["llama3"])
    assert context.sampling.stop_ids == TOKENIZERS["llama3"].stop_ids
    assert len(context.sampling.stop_ids) == 3


def test_a_template_that_no_turn_can_be_appended_to_is_an_error_at_the_start(tiny_run, tmp_path):
    last = "{% for m in messages %}<|im_start|>{{ 'now' if loop.last else 'then' }}\n"
    last += "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    last += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    with pytest.raises(T2GError, match=r"earlier turns differently.*template_options"):
        opened(tiny_run, tmp_path / "a", byte_template(last))


# A template that opens each turn with a thought, and has no way to write an answer without one


@pytest.mark.parametrize(
    ("values", "way"),
    [
        ({"methods": ("grpo",), "sft__steps": 1}, "set sft.steps to 0"),
        ({"methods": ("grpo",), "sft__steps": 0}, None),
        ({"methods": ("rltf-fm",), "sft__steps": 0}, "leave rltf-fm out"),
        ({"methods": ("rltf-fm",)}, "set sft.steps to 0 and leave rltf-fm out"),
        ({"methods": ("text2grad",), "sft__steps": 0}, "set text2grad.span_source to judge"),
        ({"methods": ("text2grad",), "sft__steps": 0, "text2grad__span_source": "judge"}, None),
    ],
)
def test_what_cannot_be_written_is_refused_at_the_door(values, way):
    begun = Config(name="thinks", model=ModelConfig(pretrained="a/thinker"))
    config = tiny.with_values(begun, **values)
    if way is None:
        pretrained.check_chat(config, qwq())
        return
    with pytest.raises(T2GError, match="no answer could be demonstrated: ") as error:
        pretrained.check_chat(config, qwq())
    assert "opens each turn with a thought" in str(error.value)
    options = "set tokenizer.template_options (enable_thinking: false, if it has that)"
    assert str(error.value).endswith(f"; {options}, or {way}")


def test_a_reward_model_is_not_trained_on_critiques_that_cannot_be_written(tiny_context):
    with pytest.raises(T2GError, match="no answer could be demonstrated"):
        reward_model.train(dataclasses.replace(tiny_context, tokenizer=qwq()))
