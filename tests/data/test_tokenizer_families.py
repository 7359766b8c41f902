"""What a run relies on, for tokenizers with the structure of each family (tests/support)."""

import json

import pytest
from family_tokenizers import FAMILIES, byte_template, llama3, nemo, qwen3, qwen35, qwq
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.spans import CharSpan, to_token_spans

TOKENIZERS = {name: family.make() for name, family in FAMILIES.items()}
each = pytest.mark.parametrize("name", FAMILIES)
words = st.lists(
    st.sampled_from("The cat sat on mat 0 12 naïve 漢字 👍🏽 row: user model\n2".split(" ")),
    min_size=1,
    max_size=8,
).map(" ".join)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def written(tokenizer, ids):
    """Text with its control tokens."""
    return tokenizer.decode(ids, skip_special=False)


def id_of(tokenizer, token):
    return tokenizer.hugging_face.convert_tokens_to_ids(token)


@each
def test_bos_is_there_once_although_the_tokenizer_would_add_it_again(name):
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    ids = tokenizer.render([user("The cat")])
    if family.bos is None:
        assert tokenizer.hugging_face.bos_token_id is None
        return
    bos = id_of(tokenizer, family.bos)
    assert ids[0] == bos
    assert ids.count(bos) == 1
    # What goes wrong elsewhere: the rendered text, encoded with all that the tokenizer adds.
    twice = tokenizer.hugging_face(written(tokenizer, ids)).input_ids
    assert twice[:2] == [bos, bos]
    assert bos not in tokenizer.encode("The cat")
    if family.bos != family.end:
        assert bos not in [*tokenizer.encode("sat"), tokenizer.end_id]
        two = tokenizer.render([user("a"), assistant("b"), user("c")])
        assert two.count(bos) == family.turns


@each
def test_rendering_is_what_hugging_face_renders(name):
    tokenizer = TOKENIZERS[name]
    messages = [user("The cat  sat\n0 1"), assistant("on 12"), user("漢字?")]
    expected = tokenizer.hugging_face.apply_chat_template(
        messages, add_generation_prompt=True, date_string="01 Jan 2025"
    )["input_ids"]
    assert tokenizer.render(messages) == expected


@each
def test_what_ends_a_turn_and_what_ends_a_completion(name):
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    assert tokenizer.end_id == id_of(tokenizer, family.end)
    assert set(tokenizer.stop_ids) == set(id_of(tokenizer, list(family.stops)))
    assert tokenizer.stop_ids[0] == tokenizer.end_id
    assert max(*tokenizer.stop_ids, tokenizer.pad_id) < tokenizer.vocab_size
    # It is silent, so that quotes and offsets are about the answer alone.
    ids = [*tokenizer.encode("The cat"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "The cat"
    assert tokenizer.offsets(ids)[-1] == (7, 7)


@settings(max_examples=40)
@given(first=words, answer=words, second=words, repaired=words)
def test_tokens_in_tokens_out_is_the_conversation_that_the_template_renders(
    first, answer, second, repaired
):
    for name, tokenizer in TOKENIZERS.items():
        messages = [user(first), assistant(answer), user(second), assistant(repaired)]
        one = tokenizer.render(messages[:1])
        sampled = [*tokenizer.encode(answer), tokenizer.end_id]
        two = [*one, *sampled, *tokenizer.next_turn(second, ended=True)]
        last = [*tokenizer.encode(repaired), tokenizer.end_id]
        whole = tokenizer.render(messages, add_generation_prompt=False)
        if FAMILIES[name].loose:  # a blank before the end, which no model samples
            end = FAMILIES[name].end
            text = written(tokenizer, whole).replace(f" {end}", end)
            assert written(tokenizer, [*two, *last]) == text
        elif name != "qwen3":  # whose last turn has its thought, if only an empty one
            assert whole[: len(two) + len(last)] == [*two, *last]
            assert not written(tokenizer, whole[len(two) + len(last) :]).strip()
        else:
            assert tokenizer.render(messages[:3]) == two


@settings(max_examples=20)
@given(answer=words, second=words)
def test_what_was_sampled_is_never_encoded_again(answer, second):
    """One token a character, as no encoder would have it: the next turn is the same."""
    for tokenizer in TOKENIZERS.values():
        odd = [i for character in answer for i in tokenizer.encode(character)]
        cut = tokenizer.next_turn(second, ended=False)  # the sampler ran out of tokens
        ended = tokenizer.next_turn(second, ended=True)
        assert cut[-len(ended) :] == ended
        assert tokenizer.end_id in cut[: len(cut) - len(ended)]
        whole = [*tokenizer.render([user("a")]), *odd, *cut]
        assert whole[len(whole) - len(cut) - len(odd) : len(whole) - len(cut)] == odd


@each
def test_system_messages_are_there_absent_or_folded(name):
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    without = written(tokenizer, tokenizer.render([user("The cat")]))
    assert "Be brief." not in without
    ids = tokenizer.render([system("Be brief."), user("The cat")])
    text = written(tokenizer, ids)
    assert text.count("Be brief.") == 1
    assert text.index("Be brief.") < text.index("The cat")
    if family.system == "refused":
        assert ids == tokenizer.render([user("Be brief.\n\nThe cat")])
    elif family.system == "own":
        between = text[text.index("Be brief.") : text.index("The cat")]
        assert "user" in between  # the opening of the next turn
    # The conversation goes on, and says it no second time.
    assert "Be brief." not in written(tokenizer, tokenizer.next_turn("again", ended=True))


def test_a_system_message_that_is_refused_cannot_write_control_tokens_either():
    gemma = TOKENIZERS["gemma2"]
    ids = gemma.render([system("<end_of_turn>\n<bos>"), user("The <start_of_turn> cat")])
    plain = gemma.render([user("The cat")])
    for token in ("<end_of_turn>", "<start_of_turn>", "<bos>"):
        assert ids.count(id_of(gemma, token)) == plain.count(id_of(gemma, token))


def test_a_system_message_that_is_left_out_is_folded_too():
    deaf = "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    deaf += "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    deaf += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = byte_template(deaf)
    ids = tokenizer.render([system("Be brief."), user("The cat")])
    assert ids == tokenizer.render([user("Be brief.\n\nThe cat")])
    with pytest.raises(ValueError, match="a role and a content"):
        tokenizer.render([system("a"), {"role": "user"}])


# Thinking


def test_without_thinking_the_turn_opens_with_an_empty_thought_that_stays():
    quick = qwen3(enable_thinking=False)
    opened = quick.render([user("The cat")])
    assert written(quick, opened).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert written(quick, quick.next_turn("again", ended=True)) == (
        "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_with_thinking_the_thought_is_sampled_and_stays_as_sampled():
    tokenizer = TOKENIZERS["qwen3"]
    think = id_of(tokenizer, "<think>")
    assert think not in tokenizer.render([user("<think> The cat")])
    completion = tokenizer.encode("<think>\nhm\n</think>\n\nsat")
    assert completion[0] == think
    assert think not in tokenizer.next_turn("again", ended=True)


OPEN = "<|im_start|>assistant\n<think>\n"


def test_an_answer_closes_the_thought_that_its_turn_opens_with():
    """As the template itself writes one without a thought."""
    tokenizer = qwen35()
    messages = [user("The cat"), assistant("sat")]
    ids = [*tokenizer.render(messages[:1]), *tokenizer.answer("sat")]
    assert written(tokenizer, ids).endswith(OPEN + "\n</think>\n\nsat<|im_end|>")
    whole = written(tokenizer, tokenizer.render(messages, add_generation_prompt=False))
    assert written(tokenizer, ids) + "\n" == whole
    think, end = (id_of(tokenizer, token) for token in ("<think>", "</think>"))
    assert (ids.count(think), ids.count(end)) == (1, 1)
    # An answer that has a thought needs none closed for it.
    thought = tokenizer.answer("hm\n</think>\n\nsat")
    assert written(tokenizer, thought) == "hm\n</think>\n\nsat<|im_end|>"
    assert qwen35(enable_thinking=False).answer("sat") == [*tokenizer.encode("sat"), ids[-1]]
    assert TOKENIZERS["qwen3"].answer("sat")[:-1] == TOKENIZERS["qwen3"].encode("sat")


@pytest.mark.parametrize("tokens", [True, False])
def test_where_no_answer_without_a_thought_can_be_written_none_is_demonstrated(tokens):
    tokenizer = qwq(tokens=tokens)
    assert written(tokenizer, tokenizer.render([user("a")])).endswith(OPEN)
    with pytest.raises(ValueError, match="opens each turn with a thought, and has no way"):
        tokenizer.answer("sat")


def test_a_thought_in_ordinary_text_that_earlier_turns_lack_is_refused():
    with pytest.raises(ValueError, match="writes earlier turns differently"):
        qwq(tokens=False).next_turn("again", ended=True)


@pytest.mark.parametrize("make", [qwen35, qwq])
def test_a_turn_follows_a_thought_only_when_that_is_over(make):
    tokenizer = make()
    turn = "<|im_start|>user\nagain<|im_end|>\n" + OPEN

    def following(said, *, ended=False):
        sampled = [*tokenizer.encode(said), *[tokenizer.end_id] * ended]
        return written(tokenizer, tokenizer.next_turn("again", ended=ended, completion=sampled))

    assert following("hm\n</think>\n\nsat", ended=True) == "\n" + turn
    assert following("hm\n</think>\n\nsat") == "<|im_end|>\n" + turn
    assert following("hm, the cat") == "\n</think>\n\n<|im_end|>\n" + turn  # cut inside it
    assert following("a</think>b<think>c") == "\n</think>\n\n<|im_end|>\n" + turn


def test_a_thought_that_the_model_itself_began_is_closed_too():
    qwen3 = TOKENIZERS["qwen3"]
    cut = qwen3.encode("<think>\nhm")
    closed = written(qwen3, qwen3.next_turn("again", ended=False, completion=cut))
    assert closed.startswith("\n</think>\n\n<|im_end|>\n<|im_start|>user\nagain")


def test_a_system_message_that_moves_to_the_last_question_stands_in_the_first():
    """Mistral Nemo's template: the second turn would not follow the first as it was sampled."""
    tokenizer = nemo()
    assert not tokenizer.takes_system
    messages = [system("Be brief."), user("The cat")]
    one = tokenizer.render(messages)
    assert one == tokenizer.hugging_face.apply_chat_template(messages)["input_ids"]
    sampled = [*tokenizer.encode("sat"), tokenizer.end_id]
    two = [*one, *sampled, *tokenizer.next_turn("on", ended=True)]
    assert two == tokenizer.render([*messages, assistant("sat"), user("on")])
    assert written(tokenizer, two) == "<s>[INST]Be brief.\n\nThe cat[/INST]sat</s>[INST]on[/INST]"
    for name, family in FAMILIES.items():
        assert TOKENIZERS[name].takes_system == (family.system != "refused")


# Dates


def test_a_template_that_writes_the_date_writes_the_same_on_every_day():
    text = written(TOKENIZERS["llama3"], TOKENIZERS["llama3"].render([user("a")]))
    assert "Today is 01 Jan 2025\n" in text
    dated = ChatTokenizer(llama3().hugging_face, template_options={"date_string": "3 May 2031"})
    assert "Today is 3 May 2031\n" in written(dated, dated.render([user("a")]))
    # One that asks for it without a way out.
    forms = byte_template(
        "{{ '<|im_start|>' + strftime_now('%A, %d %B %Y; %Y-%m-%d') }}{% for m in messages %}"
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    text = written(forms, forms.render([user("a")]))
    assert text == "<|im_start|>Wednesday, 01 January 2025; 2025-01-01a<|im_end|>"


# What files say


def test_generation_config_says_what_ends_a_completion(tmp_path):
    TOKENIZERS["gemma2"].hugging_face.save_pretrained(tmp_path / "a")
    assert ChatTokenizer.load(tmp_path / "a").stop_ids == (5, 1)
    config = tmp_path / "a/generation_config.json"
    for found, stops in ((1, (5, 1)), ([1, 5, 3], (5, 1, 3)), (None, (5, 1))):
        config.write_text(json.dumps({"eos_token_id": found, "temperature": 0.7}))
        assert ChatTokenizer.load(tmp_path / "a").stop_ids == stops
    config.write_text('{"eos_token_id": [1, 5, 3]}')
    # They go along when the tokenizer is saved elsewhere.
    ChatTokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert ChatTokenizer.load(tmp_path / "b").stop_ids == (5, 1, 3)
    TOKENIZERS["gemma2"].save(tmp_path / "c")
    assert not (tmp_path / "c/generation_config.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"eos_token_id": 99999}', r"\[99999\], which it does not have.*generation_config.json"),
        ('{"eos_token_id": -1}', r"generation_config.json is damaged \(eos_token_id is no"),
        ('{"eos_token_id": "</s>"}', r"generation_config.json is damaged \(eos_token_id is no"),
        ('{"eos_token_id": ', "generation_config.json is damaged"),
        ("[]", "generation_config.json is damaged"),
    ],
)
def test_a_generation_config_of_another_model_is_an_error(tmp_path, text, reason):
    TOKENIZERS["llama2"].hugging_face.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.model", "tekken.json", "vocab.json"])
def test_another_file_than_tokenizer_json_is_named(file, tmp_path):
    (tmp_path / file).write_bytes(b"\x0a\x0b")
    with pytest.raises(
        FileNotFoundError, match=rf"has {file}, but no tokenizer\.json.*hf download"
    ):
        ChatTokenizer.load(tmp_path)


def test_a_pad_token_that_the_tokenizer_does_not_have(tmp_path):
    """`transformers` would add it, with an id that the model has no row for."""
    tokenizer = TOKENIZERS["qwen2"]
    tokenizer.hugging_face.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "<my_pad>"}))
    loaded = ChatTokenizer.load(tmp_path)
    assert loaded.pad_id == loaded.end_id == tokenizer.end_id
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.render([user("The cat")]) == tokenizer.render([user("The cat")])
    loaded.save(tmp_path / "again")
    assert ChatTokenizer.load(tmp_path / "again").pad_id == loaded.pad_id


def test_a_template_in_the_file_of_a_processor(tmp_path):
    tokenizer = TOKENIZERS["gemma3"]
    tokenizer.hugging_face.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "chat_template.json"
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTokenizer.load(tmp_path)
    file.write_text(json.dumps({"chat_template": tokenizer.hugging_face.chat_template}))
    messages = [user("The cat"), assistant("sat"), user("on")]
    assert ChatTokenizer.load(tmp_path).render(messages) == tokenizer.render(messages)
    for text in ("{", "{}", '{"chat_template": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"chat_template\.json is damaged"):
            ChatTokenizer.load(tmp_path)


def test_several_templates_without_a_default(tmp_path):
    tokenizer = TOKENIZERS["qwen2"]
    tokenizer.hugging_face.save_pretrained(tmp_path)
    template = (tmp_path / "chat_template.jinja").rename(tmp_path / "template").read_text()
    file = tmp_path / "tokenizer_config.json"
    about = json.loads(file.read_text())
    named = [{"name": "tool_use", "template": template}, {"name": "rag", "template": "x"}]
    file.write_text(json.dumps(about | {"chat_template": named}))
    with pytest.raises(ValueError, match=r"for rag, tool_use.*put .*chat_template\.jinja"):
        ChatTokenizer.load(tmp_path)
    named.append({"name": "default", "template": template})
    file.write_text(json.dumps(about | {"chat_template": named}))
    assert ChatTokenizer.load(tmp_path).render([user("The cat")])
    file.write_text(json.dumps(about | {"chat_template": [{"name": "default"}]}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged.*template"):
        ChatTokenizer.load(tmp_path)


def test_a_template_that_is_not_text(tmp_path):
    TOKENIZERS["qwen2"].hugging_face.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes("Für {{ messages }}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"chat_template\.jinja is damaged \(it is not UTF-8"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize("wrong", ["{{ messages[0]['content'] + 1 }}", "{{ 1 // 0 }}"])
def test_whatever_goes_wrong_in_a_template_is_said_of_it(wrong):
    plain = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = byte_template(f"{{% if messages|length == 4 %}}{wrong}{{% endif %}}{plain}")
    with pytest.raises(ValueError, match="the chat template refuses these messages: "):
        tokenizer.render([user("a"), assistant("b"), user("c"), assistant("d")])


def test_a_template_without_the_question_is_refused():
    template = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>"
    with pytest.raises(ValueError, match="its chat template drops what the user says"):
        byte_template(template + "{% endfor %}").next_turn("a", ended=True)


def test_the_default_of_several_templates(tmp_path):
    tokenizer = TOKENIZERS["qwen2"]
    tokenizer.hugging_face.save_pretrained(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text(
        "{{ raise_exception('no') }}"
    )
    messages = [user("The cat"), assistant("sat"), user("on")]
    assert ChatTokenizer.load(tmp_path).render(messages) == tokenizer.render(messages)


@each
def test_a_saved_tokenizer_is_the_same(name, tmp_path):
    tokenizer = TOKENIZERS[name]
    tokenizer.save(tmp_path / "t")
    loaded = ChatTokenizer.load(tmp_path / "t")
    messages = [system("Be brief."), user("The cat"), assistant("sat"), user("on")]
    assert loaded.render(messages) == tokenizer.render(messages)
    assert (loaded.stop_ids, loaded.pad_id) == (tokenizer.stop_ids, tokenizer.pad_id)
    assert loaded.encode("The cat 漢") == tokenizer.encode("The cat 漢")


@each
def test_transformers_4_reads_what_is_saved(name, tmp_path):
    """It does not know the classes of 5, nor a list of extra tokens."""
    TOKENIZERS[name].save(tmp_path / "t")
    about = json.loads((tmp_path / "t/tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(about.get("extra_special_tokens"), list)


@pytest.mark.parametrize(
    ("name", "kind", "model_type"),
    [("llama2", "LlamaTokenizer", "llama"), ("olmo2", "LlamaTokenizerFast", "qwen2")],
)
def test_tokenizer_json_is_taken_as_it_is(name, kind, model_type, tmp_path):
    """By the class that is named beside it, `transformers` 5 would split text otherwise: Llama 2's
    after a control token, and of models that name another family's class all of it."""
    tokenizer = TOKENIZERS[name]
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": kind}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    messages = [user("The cat 12345"), assistant("sat 678"), user("on")]
    assert ChatTokenizer.load(tmp_path).render(messages) == tokenizer.render(messages)
    text = f"The cat 12345{FAMILIES[name].end}sat"
    by_class = AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
    assert by_class != tokenizer.hugging_face(text).input_ids  # or this test is of no use


@each
def test_control_tokens_are_found_where_the_tokenizer_would_miss_them(name, tmp_path):
    """Older files of Llama 2 look for them in normalized text only, and miss all but the first."""
    tokenizer = TOKENIZERS[name]
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    for token in state["added_tokens"]:
        token.update(normalized=True, single_word=True)
    file.write_text(json.dumps(state))
    old = ChatTokenizer.load(tmp_path)
    messages = [user("The cat"), assistant("sat"), user("on")]
    assert old.render(messages) == tokenizer.render(messages)
    assert old.end_id == tokenizer.end_id
    assert old.decode([*old.encode("The cat"), old.end_id]) == "The cat"


def test_a_special_token_that_nothing_writes_needs_no_row_of_the_model():
    """Gemma 3 1B has 262,144 rows, and its tokenizer one token more, for images."""
    size = TOKENIZERS["gemma3"].vocab_size
    more = FAMILIES["gemma3"].make().hugging_face
    more.backend_tokenizer.add_special_tokens(["<image_soft_token>"])
    assert more.backend_tokenizer.token_to_id("<image_soft_token>") == size
    image = ChatTokenizer(more)
    assert image.vocab_size == size
    assert size not in image.render([user("an <image_soft_token>")])
    more.backend_tokenizer.add_tokens(["<plain>"])
    assert ChatTokenizer(more).vocab_size == size + 2


# Offsets


@settings(max_examples=40)
@given(answer=words)
def test_offsets_cover_the_answer(answer):
    for tokenizer in TOKENIZERS.values():
        ids = [*tokenizer.encode(answer), tokenizer.end_id]
        offsets = tokenizer.offsets(ids)
        text = tokenizer.decode(ids)
        assert len(offsets) == len(ids)
        assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))
        assert offsets[-1][0] == offsets[-1][1]


@settings(max_examples=40)
@given(text=words | st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_offsets_in_the_text_that_was_encoded(text):
    text = f"{text}<think>{text}</think> <|im_end|>"
    for name, tokenizer in TOKENIZERS.items():
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert len(ids) == len(offsets)
        assert all(0 <= a <= b <= len(text) for a, b in offsets)
        assert offsets == sorted(offsets)
        covered = {i for a, b in offsets for i in range(a, b)}
        assert covered == set(range(len(text)))
        if tokenizer.decode(ids) == text:
            assert tokenizer.offsets(ids) == offsets
        if name == "qwen3":  # whose thoughts are tokens
            think, start = id_of(tokenizer, "<think>"), text.index("<think>")
            assert offsets[ids.index(think)] == (start, start + 7)


def test_offsets_where_the_tokenizer_normalizes():
    qwen = TOKENIZERS["qwen2"]
    text = "cafe\u0301 sat"  # one character once it is composed
    ids, offsets = qwen.encode_with_offsets(text)
    assert qwen.decode(ids) == "caf\u00e9 sat"
    assert offsets[-1][1] == len(text)
    assert {i for a, b in offsets for i in range(a, b)} == set(range(9))
    assert qwen.encode_with_offsets("e\u0301")[1] == [(0, 2)] * 2  # two bytes, two characters
    (found,) = to_token_spans([CharSpan(3, 5, 1.0, "e\u0301", "exact", 100.0)], offsets)
    assert {at for t in range(found.start, found.end) for at in offsets[t]} >= {3, 5}


NORMALIZERS = {
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "lower": normalizers.Lowercase(),
    "no accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "no controls": normalizers.Nmt(),
    "no blanks at the ends": normalizers.Strip(),
    "one blank": normalizers.Replace(Regex(" {2,}"), " "),
    "no x": normalizers.Replace("x", ""),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_character_belongs_to_a_token_whatever_the_normalizer(name):
    base = TOKENIZERS["qwen2"].hugging_face
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    backend.normalizer = NORMALIZERS[name]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=base.eos_token)
    wrapped.chat_template = base.chat_template
    tokenizer = ChatTokenizer(wrapped)
    for text in (
        "cafe\u0301 a\u0308\u0323 \u1112\u1161\u11ab sat",
        "\u0301\u0301A  b x\u0007 ",
        "  xx an oﬃce, İstanbul, ½ and x² xx",
        "e\u0301\r\n<think>e\u0301",
    ):
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        assert offsets == sorted(offsets)
        assert {i for a, b in offsets for i in range(a, b)} == set(range(len(text)))
        to_token_spans([], offsets)  # in order
