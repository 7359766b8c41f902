import codecs
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from t2g_jax.data.tokenizer import SPECIAL_TOKENS, ChatTokenizer, train_tokenizer
from t2g_jax.spans.align import align, to_token_spans
from t2g_jax.spans.quotes import Quote

CORPUS = [
    "The cat sat on the mat, and the answer is \\boxed{12}.\n",
    "0 1 1\n1 2 1\n0 0 2\n",
    "> X O * O\n# X O O X\n",
    "Find the shortest path; a critique says what is wrong and where.\n",
    "漢字 かな 👍🏽 ❤️ שלום ﬁne Straße naïve café 한글\n",
] * 8

PIECES = [
    *[
        "the ",
        "cat",
        " 12",
        "\n",
        "  ",
        "0 1",
        "é",
        "e\u0301",
        "漢字",
        "👍🏽",
        "👩\u200d👧",
        "שלום",
        "ﬁ",
        "ß",
    ],
    *["▁", "\ufffd", "\x00", "\u200b", "\U0010ffff"],
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=30)
texts = texts.map("".join)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content']|trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content']|trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
# Drops earlier thoughts, and opens the turn with an empty thought if asked to.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def user(content):
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizers") / "trained"
    train_tokenizer(CORPUS, 420, directory)
    return directory


@pytest.fixture(scope="module")
def trained(folder):
    return ChatTokenizer.load(folder)


def byte_level(template, added=(), **options):
    """A byte-level tokenizer with another family's control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    backend.add_tokens([AddedToken(content, normalized=False) for content in added])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    wrapped.chat_template = template
    return ChatTokenizer(wrapped, **options)


def llama_like(template=LLAMA):
    """Metaspace by normalizer, byte fallback, and a BOS that the post-processor would add again."""
    specials = ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(CORPUS[:4], trainer)
    state = json.loads(backend.to_str())
    state["pre_tokenizer"] = None
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    state["model"].update(byte_fallback=True, fuse_unk=True)
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = template
    return ChatTokenizer(wrapped)


def unigram(template=CHATML):
    """SentencePiece's Unigram, whose vocabulary holds its control tokens as pieces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = [chr(i) for i in range(32, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=specials,
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    wrapped.chat_template = template
    return ChatTokenizer(wrapped)


@pytest.fixture(scope="module")
def chatml():
    return byte_level(CHATML)


@pytest.fixture(scope="module")
def llama():
    return llama_like()


@pytest.fixture(scope="module")
def families(trained, chatml, llama):
    return [trained, chatml, llama, unigram()]


def specials_in(tokenizer, ids):
    special = set(tokenizer.hugging_face.all_special_tokens)
    tokens = tokenizer.hugging_face.convert_ids_to_tokens(ids)
    return [token for token in tokens if token in special]


# Training, saving, loading


@given(text=texts)
def test_any_text_survives_encoding(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(0 <= i < trained.vocab_size for i in ids)


def pieces(tokenizer, text):
    return [tokenizer.decode([i], skip_special=False) for i in tokenizer.encode(text)]


@pytest.fixture(scope="module")
def of_grids(tmp_path_factory):
    """A tokenizer that has seen grids, as a puzzle's has."""
    folder = tmp_path_factory.mktemp("grids")
    texts = ["Answer:\n0 1 2\n1 2 1\n3 4 5\n6 7 8\n9 O X\n* # O\nO O X\nX * #"] * 50
    train_tokenizer(texts, 400, folder / "tokenizer")
    return ChatTokenizer.load(folder / "tokenizer")


@pytest.mark.parametrize(
    ("grid", "cells"),
    [
        ("0 1 1\n1 2 1", ["0", " 1", " 1", "\n1", " 2", " 1"]),
        ("X O O\n* O #", ["X", " O", " O", "\n*", " O", " #"]),
        ("Answer:\n0 12", ["Answer", ":", "\n0", " 1", "2"]),
    ],
)
def test_a_cell_of_a_grid_is_one_token_with_what_stands_before_it(of_grids, grid, cells):
    assert pieces(of_grids, grid) == cells


def test_words_are_merged_with_the_space_before_them(trained):
    assert "".join(pieces(trained, "The cat sat")) == "The cat sat"
    assert " cat" in pieces(trained, "The cat sat")
    assert len(trained.encode("The cat sat on the mat")) < 12


def test_saved_files_are_hugging_face_format(folder, trained):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.is_fast
    assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(5))
    assert loaded.pad_token_id == trained.pad_id == 0
    assert loaded.eos_token_id == trained.end_id == 4
    assert loaded("The cat", add_special_tokens=True).input_ids == trained.encode("The cat")


def test_training_is_repeatable_and_saving_is_whole(tmp_path, folder, trained):
    train_tokenizer(iter(CORPUS), 420, tmp_path / "a" / "again")
    assert (tmp_path / "a/again/tokenizer.json").read_text() == (
        folder / "tokenizer.json"
    ).read_text()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["again"]
    trained.save(tmp_path / "a" / "again")
    copy = ChatTokenizer.load(tmp_path / "a" / "again")
    assert copy.render(user("hi 12")) == trained.render(user("hi 12"))
    assert (copy.vocab_size, copy.stop_ids) == (trained.vocab_size, trained.stop_ids)


def test_a_vocabulary_without_room_for_the_bytes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=260 is too small"):
        train_tokenizer(CORPUS, 260, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_what_cannot_be_loaded_is_named_with_the_fix(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder.*train_tokenizer"):
        ChatTokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)
    bare = tmp_path / "bare"
    ChatTokenizer.load(folder).save(bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"bare: the tokenizer has no chat template.*jinja"):
        ChatTokenizer.load(bare)


# Rendering


def test_the_template_of_a_trained_tokenizer(trained):
    messages = [
        {"role": "system", "content": "Be brief."},
        *user("cat"),
        {"role": "assistant", "content": "mat"},
    ]
    ids = trained.render(messages, add_generation_prompt=False)
    text = "<|system|>Be brief.<|end|><|user|>cat<|end|><|assistant|>mat<|end|>"
    assert trained.decode(ids, skip_special=False) == text
    assert trained.decode(ids) == "Be brief.catmat"
    assert trained.render(messages) == [*ids, 3]


def test_rendering_equals_hugging_face_when_no_message_spells_a_control_token(families):
    for tokenizer in families:
        for content in ["The cat sat", " 漢 0 1\n", "<think> [INST] <|"]:
            messages = [*user(content), {"role": "assistant", "content": "yes"}, *user("and?")]
            expected = tokenizer.hugging_face.apply_chat_template(
                messages, add_generation_prompt=True
            )["input_ids"]
            assert tokenizer.render(messages) == expected


def test_bos_appears_once_where_the_template_writes_it(llama):
    bos = llama.hugging_face.bos_token_id
    ids = llama.render(user("hello"))
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert bos not in llama.encode("hello")


hostile = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>"])
    | st.sampled_from(["<|", "|>", "end", "<", " ", "\n", "<unk>", "\U000f0000", "cat"]),
    max_size=8,
).map("".join)


@settings(max_examples=60)
@given(system=hostile, first=hostile, answer=hostile, second=hostile)
def test_no_message_can_write_a_control_token(families, system, first, answer, second):
    for tokenizer in families:
        chat = [*user(first), {"role": "assistant", "content": answer}, *user(second)]
        plain = [*user("cat"), {"role": "assistant", "content": "cat"}, *user("cat")]
        if "[INST]" not in tokenizer.hugging_face.chat_template:
            chat.insert(0, {"role": "system", "content": system})
            plain.insert(0, {"role": "system", "content": "cat"})
        unk = tokenizer.hugging_face.unk_token
        expected = specials_in(tokenizer, tokenizer.render(plain))
        found = [t for t in specials_in(tokenizer, tokenizer.render(chat)) if t != unk]
        assert found == expected
        after = specials_in(tokenizer, tokenizer.next_turn(second, ended=True))
        assert [t for t in after if t != unk] == specials_in(
            tokenizer, tokenizer.next_turn("cat", ended=True)
        )
        assert not [t for t in specials_in(tokenizer, tokenizer.encode(first)) if t != unk]


@given(content=hostile)
def test_a_message_that_spells_control_tokens_keeps_its_text(trained, content):
    ids = trained.render(user(content))
    assert trained.decode(ids, skip_special=False) == f"<|user|>{content}<|end|><|assistant|>"
    assert trained.decode(trained.encode(content)) == content


def test_thoughts_are_tokens_for_the_assistant_and_text_for_the_user():
    template = CHATML.replace("{% endif %}", "<think>\n{% endif %}")
    tokenizer = byte_level(template, added=["<think>", "<tag>"])
    think, tag = tokenizer.hugging_face.convert_tokens_to_ids(["<think>", "<tag>"])
    render = lambda *messages: tokenizer.render(messages, add_generation_prompt=False)  # noqa: E731
    assert think in render({"role": "assistant", "content": "<think>hm"})
    assert think not in render(*user("<think>hm"))
    assert think in tokenizer.encode("<think>hm")
    # An added token that the template never writes is an ordinary part of text.
    assert tag in render(*user("<tag>"))
    assert tokenizer.render(user("<think>")).count(think) == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"role": "user"}], "a role and a content"),
        ([{"role": "user", "content": None}], "a role and a content"),
        ([{"role": "user", "content": "a", "name": "b"}], "a role and a content"),
        ([{"role": "<|end|>", "content": "a"}], "role '<|end|>' is none of"),
        ([{"role": "tool", "content": "a"}], "template refuses these messages.*no role tool"),
        (user("\ud83d"), "lone surrogate"),
    ],
)
def test_malformed_messages_are_errors(trained, messages, reason):
    with pytest.raises(ValueError, match=reason.replace("|", r"\|")):
        trained.render(messages)


def test_template_options_reach_the_template():
    tokenizer = byte_level(THINKING, template_options={"enable_thinking": False})
    assert tokenizer.decode(tokenizer.render(user("a"))).endswith("<think>\n\n</think>\n\n")


# The end of a turn and the next one


def test_the_end_of_a_turn_is_what_the_template_writes(trained, chatml, llama):
    assert trained.stop_ids == (4,)
    end, eos = chatml.hugging_face.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert (chatml.end_id, chatml.stop_ids, chatml.pad_id) == (end, (end, eos), eos)
    assert llama.end_id == llama.pad_id == llama.hugging_face.eos_token_id


def test_a_tokenizer_without_an_end_of_turn_is_an_error():
    tokenizer = byte_level(CHATML).hugging_face
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '. ' }}{% endfor %}"
    assert ChatTokenizer(tokenizer).end_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set eos_token"):
        ChatTokenizer(tokenizer)


def test_the_next_turn_continues_the_conversation_as_the_template_does(families):
    for tokenizer in families:
        first, last = user("The cat"), user("0 1\nagain")
        whole = tokenizer.render([*first, {"role": "assistant", "content": "yes"}, *last])
        rest = tokenizer.next_turn("0 1\nagain", ended=False)
        assert whole[-len(rest) :] == rest
        before = tokenizer.decode(whole[: -len(rest)], skip_special=False)
        opened = tokenizer.decode(tokenizer.render(first), skip_special=False)
        assert before.startswith(opened)
        assert before[len(opened) :].strip() == "yes"
        ended = tokenizer.next_turn("0 1\nagain", ended=True)
        assert rest[-len(ended) :] == ended
        assert tokenizer.end_id in rest[: len(rest) - len(ended)]


def test_a_template_that_rewrites_earlier_turns_cannot_append_one():
    tokenizer = byte_level(THINKING, template_options={"enable_thinking": False})
    with pytest.raises(ValueError, match=r"earlier turns differently.*template_options"):
        tokenizer.next_turn("a", ended=True)
    assert byte_level(THINKING).next_turn("a", ended=True)


# Offsets


def byte_of():
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in visible}
    hidden = (byte for byte in range(256) if byte not in visible)
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF = byte_of()


def expected_offsets(tokens):
    """Characters of each token by feeding an incremental decoder byte by byte; None: no bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    chars, owners, pending = 0, [], []  # owners: the character of each byte
    data = [b for token in tokens if token is not None for b in token]
    for at, byte in enumerate(data):
        out = decoder.decode(bytes([byte]), final=at == len(data) - 1)
        held = len(decoder.getstate()[0])
        pending.append(at)
        if not out:
            continue
        # Bytes still held start a new character; the rest made the characters that came out.
        done, pending = pending[: len(pending) - held], pending[len(pending) - held :]
        if len(out) == 1:
            owners += [chars] * len(done)
        else:  # a broken start, then the byte (or bytes) that broke it, each a character
            first = len(done) - (len(out) - 1)
            owners += [chars] * first + [chars + 1 + i for i in range(len(out) - 1)]
        chars += len(out)
    offsets, at = [], 0
    for token in tokens:
        start = owners[at] if at < len(owners) else chars
        at += len(token or b"")
        offsets.append((start, owners[at - 1] + 1 if token else start))
    return offsets


@settings(max_examples=300)
@given(data=st.data())
def test_offsets_of_any_tokens_of_a_byte_level_tokenizer(trained, data):
    ids = data.draw(st.lists(st.integers(0, trained.vocab_size + 3), max_size=30))
    tokens = trained.hugging_face.convert_ids_to_tokens(ids)
    silent = [i < 5 or i >= trained.vocab_size for i in ids]
    pairs = zip(tokens, silent, strict=True)
    raw = [None if quiet else bytes(BYTE_OF[c] for c in token) for token, quiet in pairs]
    text = b"".join(token or b"" for token in raw).decode(errors="replace")
    assert trained.decode(ids) == text
    assert trained.offsets(ids) == expected_offsets(raw)


def test_offsets_by_hand(trained):
    byte = {b: i for i, b in enumerate(trained.hugging_face.convert_ids_to_tokens(range(420))) if b}
    one = lambda value: byte[next(c for c, b in BYTE_OF.items() if b == value)]  # noqa: E731
    euro = [one(b) for b in "€".encode()]
    assert trained.offsets([one(97), *euro, one(98)]) == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    # A special token inside a character, and a character that never ends.
    ids = [euro[0], trained.end_id, *euro[1:], euro[0], trained.end_id]
    assert trained.decode(ids) == "€\ufffd"
    assert trained.offsets(ids) == [(0, 1), (0, 0), (0, 1), (0, 1), (1, 2), (2, 2)]
    assert trained.offsets([]) == []


@given(text=texts)
def test_offsets_of_encoded_text_are_those_of_the_encoding(trained, text):
    backend = trained.hugging_face.backend_tokenizer
    assert trained.offsets(backend.encode(text).ids) == backend.encode(text).offsets


def test_offsets_do_not_encode_again(trained):
    ids = [trained.encode(c)[0] for c in "The cat"]  # one letter each, where encoding merges
    assert ids != trained.encode("The cat")
    assert trained.offsets(ids) == [(i, i + 1) for i in range(7)]


def fallback_oracle(tokenizer, ids):
    """SentencePiece with byte fallback: a run of byte tokens is its text, or one U+FFFD a byte."""
    offsets, text, run = [], "", []

    def close():
        nonlocal text
        data = bytes(run)
        try:
            chars = [(len(c.encode()), c) for c in data.decode()]
        except UnicodeDecodeError:
            chars = [(1, "\ufffd")] * len(data)
        for size, char in chars:
            offsets.extend([(len(text), len(text) + 1)] * size)
            text += char
        run.clear()

    for i in ids:
        token = tokenizer.hugging_face.convert_ids_to_tokens(i)
        if token.startswith("<0x"):
            run.append(int(token[1:-1], 16))
            continue
        close()
        piece = token.replace("▁", " ")
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    close()
    cut = text.startswith(" ")
    return text[cut:], [(max(a - cut, 0), max(b - cut, 0)) for a, b in offsets]


@given(text=texts, repeat=st.sampled_from([1, 9]))
def test_offsets_of_a_tokenizer_with_byte_fallback(llama, text, repeat):
    ids = llama.encode(text * repeat)  # the longer ones move the anchor
    decoded, offsets = fallback_oracle(llama, ids)
    assert llama.decode(ids) == decoded
    assert llama.offsets(ids) == offsets


@given(data=st.data())
def test_offsets_of_any_tokens_of_any_tokenizer_are_in_order_and_cover_the_text(families, data):
    for tokenizer in families:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=80))
        text, offsets = tokenizer.decode(ids), tokenizer.offsets(ids)
        assert len(offsets) == len(ids)
        assert offsets == sorted(offsets) or any(a == b for a, b in offsets)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))
        special = set(tokenizer.hugging_face.all_special_ids)
        pairs = zip(ids, offsets, strict=True)
        assert all(a == b for i, (a, b) in pairs if i in special)


def test_offsets_with_metaspace(families):
    tokenizer = families[3]
    ids = tokenizer.encode("The cat sat on the mat")
    text = tokenizer.decode(ids)
    assert text == "The cat sat on the mat"
    tokens = tokenizer.hugging_face.convert_ids_to_tokens(ids)
    cut = [text[a:b] for a, b in tokenizer.offsets(ids)]
    assert cut == [tokens[0].lstrip("▁"), *(token.replace("▁", " ") for token in tokens[1:])]


def test_long_completions_are_quick(trained, llama):
    for tokenizer in (trained, llama):
        ids = tokenizer.encode("".join(CORPUS) * 4)
        begin = time.process_time()
        offsets = tokenizer.offsets(ids)
        assert offsets[-1][1] == len(tokenizer.decode(ids))
        assert time.process_time() - begin < 20  # a third of a second


@given(text=texts.filter(str.strip), data=st.data())
def test_a_quote_covers_the_sampled_tokens_whose_bytes_it_shares(trained, text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip():
        return
    phrase = text[start:end]
    # Any split of the bytes into tokens, not only the one that encoding gives.
    ids = [i for piece in text for i in trained.encode(piece)]
    ordinal = sum(text.startswith(phrase, i) for i in range(start + 1))
    spans = align(trained.decode(ids), [Quote(phrase, 1.0, ordinal=ordinal)]).spans
    (found,) = to_token_spans(spans, trained.offsets(ids))
    start += len(phrase) - len(phrase.lstrip())
    end = start + len(phrase.strip())
    sizes = [len(trained.encode(piece)) for piece in text]
    assert (found.start, found.end) == (sum(sizes[:start]), sum(sizes[:end]))
