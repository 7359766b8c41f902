"""Text to tokens and back: the only place that renders chats, and the only one that reads text.

Text can never write a control token: "<|end|>" in a user's message is seven ordinary characters.
"""

import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from t2g_jax.data import tokenizer_files
from t2g_jax.runtime import durable
from t2g_jax.spans.token_offsets import TokenLocator, agreement, without_holes

Message = Mapping[str, str]

SPECIAL_TOKENS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('this template has no role ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

# Words of two letters or more, with the space before them; runs of punctuation likewise; else one
# character at a time, with the space or line break before it. So a cell of a grid is one token, and
# the first cell of a row another than the rest: rows are as long as they look.
_PIECES = (
    r" ?[\p{L}\p{M}]{2,}| ?[^\s\p{L}\p{M}\p{N}]{2,}|[ \n]?\p{N}|[ \n]?[^\s\p{N}](?![\p{L}\p{M}])"
    r"|\n|[^\S\n]+(?!\S)|[^\S\n]|[^\s]"
)

_ROLES = ("system", "user", "assistant", "tool")
# What is said to see what a template writes around it.
_SYSTEM, _QUESTION, _ANSWER = "Xsystem", "Xquestion", "Xanswer"
# For templates that write today's date: a run must not depend on the day.
_TODAY = (
    "{%- macro strftime_now(form) -%}{{ form"
    + "".join(
        f"|replace('%{letter}', '{value}')"
        for letter, value in zip(
            "dbBmYyAaHMS", "01 Jan January 01 2025 25 Wednesday Wed 00 00 00".split(), strict=True
        )
    )
    + " }}{%- endmacro %}"
)
# As a template writes the beginning or the end of a thought.
_THOUGHT = re.compile(r"</?((?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?))>")


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: str | Path) -> None:
    """Learns a byte-level BPE tokenizer and saves it, with a chat template, for `ChatTokenizer`.

    Any Unicode text survives encoding and decoding. A cell of a grid becomes one token with
    the blank before it: "0 1\\n1" is "0", " 1", "\\n1". Folder and contents appear at once.

    Args:
      texts: what to learn the merges from.
      vocab_size: tokens in all, of which 256 are bytes and 5 special. Fewer are made if the texts
        have no more pairs to merge.
      directory: where tokenizer.json, tokenizer_config.json and chat_template.jinja go.

    Raises:
      ValueError: vocab_size has no room for the bytes and the special tokens.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special "
            f"tokens need {256 + len(SPECIAL_TOKENS)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    ChatTokenizer(wrapped).save(directory)


def split_thought(text: str) -> tuple[str, str]:
    """What a completion says before and after the last tag that ends a thought (`</think>`)."""
    ends = [tag for tag in _THOUGHT.finditer(text) if tag[0].startswith("</")]
    if not ends:
        return "", text
    return _THOUGHT.sub("", text[: ends[-1].start()]).strip(), text[ends[-1].end() :].strip()


class ChatTokenizer:
    """A Hugging Face fast tokenizer with its chat template.

    Attributes:
      vocab_size: 1 + the largest token id, but for special tokens that nothing here can write, such
        as Gemma 3's for a part of an image: its smallest model has no row for it.
      end_id: the token that ends an assistant's turn: what the template writes after it, else eos.
      stop_ids: tokens that end a completion: `end_id`, eos, and those of generation_config.json.
      pad_id: fills rows; `end_id` if the tokenizer has none. It may equal eos, so masks are made
        from lengths, never from ids.
    """

    vocab_size: int
    end_id: int
    stop_ids: tuple[int, ...]
    pad_id: int

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template_options: Mapping[str, Any] | None = None,
        stop_ids: Sequence[int] = (),
    ):
        """Wraps a tokenizer.

        Args:
          tokenizer: a fast tokenizer with a chat template.
          template_options: variables for the template, such as `enable_thinking=False`. For a
            template that asks for today's date it is always 1 January 2025, unless another is
            given as the template wants it (`date_string`, for Llama 3).
          stop_ids: more tokens that end a completion.

        Raises:
          ValueError: it is not fast, has no chat template, or no token that ends a turn; or it has
            no token of `stop_ids`.
        """
        self.name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        if not tokenizer.is_fast:
            raise ValueError(f"{self.name}: not a fast tokenizer; save one with a tokenizer.json")
        if not tokenizer.chat_template:
            raise ValueError(
                f"{self.name}: the tokenizer has no chat template; use the tokenizer of a chat "
                "model, or put a chat_template.jinja beside its tokenizer.json"
            )
        self.hugging_face = tokenizer
        self._options = dict(template_options or {})
        self._backend = tokenizer_files.as_spelled(tokenizer.backend_tokenizer)
        added = self._backend.get_added_tokens_decoder()
        self._special_ids = {i for i, token in added.items() if token.special}
        self._locator = TokenLocator(self._backend)
        template = tokenizer_files.default_template(tokenizer.chat_template, self.name)
        named = {
            *(tokenizer.bos_token, tokenizer.eos_token),
            *(tokenizer.pad_token, tokenizer.unk_token),
        }
        self.vocab_size = 1 + max(
            i
            for token, i in self._backend.get_vocab(with_added_tokens=True).items()
            if i not in self._special_ids or token in named or token in template
        )
        self._chat_template = _TODAY * ("strftime_now" in template) + template
        written = {
            token.content
            for token in added.values()
            if not token.special and not token.content.isspace() and token.content in template
        }
        special = {added[i].content for i in self._special_ids}
        self._special, self._control = _any_of(special), _any_of(special | written)
        self._written = _any_of(written)
        nonce = secrets.token_hex(8)
        self._spelling = {
            token.content: f"\ue000{nonce}:{i}\ue001"
            for i, token in added.items()
            if token.content in special | written
        }
        self._spelled = _any_of(self._spelling.values())
        self._writer = tokenizer_files.respell(self._backend, self._spelling, self.name)

        eos = tokenizer.eos_token_id
        end = self._end_of_turn()
        if end is None and eos is None:
            raise ValueError(
                f"{self.name}: nothing ends a turn; set eos_token in tokenizer_config.json"
            )
        self.end_id = eos if end is None else end
        ends = (i for i in (self.end_id, eos, *stop_ids) if i is not None)
        self.stop_ids = tuple(dict.fromkeys(ends))
        if unknown := [i for i in self.stop_ids if self._backend.id_to_token(i) is None]:
            raise ValueError(
                f"{self.name}: completions are to end with the tokens {unknown}, which it does not "
                f"have (it has {self.vocab_size}); the files are of different models, or "
                f"eos_token_id in {tokenizer_files.GENERATION} is wrong"
            )
        self.pad_id = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @classmethod
    def load(
        cls, directory: str | Path, *, template_options: Mapping[str, Any] | None = None
    ) -> "ChatTokenizer":
        """Reads the tokenizer in a folder; runs no code from it and downloads nothing.

        Raises:
          FileNotFoundError: no such folder, or no tokenizer in it.
          ValueError: as the constructor; or a file is damaged, it is named.
        """
        tokenizer, stop_ids = tokenizer_files.read(Path(directory))
        return cls(tokenizer, template_options=template_options, stop_ids=stop_ids)

    def save(self, directory: str | Path) -> None:
        """Writes a folder that `load` reads. A new folder appears whole or not at all."""
        directory = Path(directory)
        if directory.exists():
            self._write(directory)
            return
        partial = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}.partial")
        self._write(partial)
        try:
            durable.appear(partial, directory)
        except OSError:
            shutil.rmtree(partial)
            if not directory.exists():  # else another process was first
                raise

    def _write(self, directory: Path) -> None:
        self.hugging_face.save_pretrained(directory)
        tokenizer_files.make_readable_by_4(directory)
        if set(self.stop_ids) - {self.end_id, self.hugging_face.eos_token_id}:
            tokenizer_files.write_stop_ids(self.stop_ids, directory)

    def agrees_with(self, other: "ChatTokenizer") -> bool:
        """Whether another one has the same tokens, splits text as this one, and writes chats so."""

        def definition(it: ChatTokenizer) -> tuple[object, ...]:
            return it._backend.to_str(), it.hugging_face.chat_template, it.stop_ids

        return definition(self) == definition(other)

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of text: no BOS, and no special tokens even if the text spells them.

        Added tokens that are not special, such as <think>, are still recognized.
        """
        return self._encode(self._written.sub(lambda m: self._spelling[m[0]], text)).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and where each token is in `text`: as `offsets`, but in this very text.

        Some tokenizers normalize what they encode, and `decode` then gives another text. Every
        character still belongs to a token: one that is composed with the character before it, or
        left out, to that character's.
        """
        ids = self.encode(text)
        if self.decode(ids) == text:
            return ids, self.offsets(ids)
        spelled, at, starts = "", 0, [0]  # the character of `text` at each of the spelled text
        for match in [*self._written.finditer(text), None]:
            start = match.start() if match else len(text)
            spelled += text[at:start]
            starts += range(at + 1, start + 1)
            if match:
                at = match.end()
                spelling = self._spelling[match[0]]
                spelled += spelling
                starts += [start] * (len(spelling) - 1) + [at]
        encoding = self._encode(spelled)
        offsets = [(starts[start], starts[end]) for start, end in encoding.offsets]
        return encoding.ids, without_holes(offsets, len(text))

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of tokens, exactly as written; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Tokens of a conversation, by the tokenizer's own chat template.

        The template writes every control token, BOS among them: none is added, and none comes from
        a message. Messages of the assistant may hold added tokens that are not special (<think>).
        Where the template has no place for a first system message (see `takes_system`), that
        stands at the start of the user's first turn, before an empty line.

        Args:
          messages: dicts of "role" (system, user, assistant or tool) and "content".
          add_generation_prompt: end with the opening of the assistant's next turn.

        Raises:
          ValueError: no messages, one that is malformed, or one that the template refuses.
        """
        _check(messages)
        return self._encode(self._template(self._placed(messages), add_generation_prompt)).ids

    def answer(self, text: str) -> list[int]:
        """Tokens of a turn of the assistant that says `text` and ends, to follow its opening.

        Where the template opens the turn with a thought (`<think>`) that the answer has none of,
        it is closed first, as the template writes an answer without a thought.

        Raises:
          ValueError: the template writes such an answer otherwise than it opens the turn.
        """
        return [*self.without_thought(text), *self.encode(text), self.end_id]

    def without_thought(self, text: str) -> list[int]:
        """What stands before `text` in such a turn: nothing, or the end of an opened thought.

        Nothing, too, if the text ends the thought itself. Raises as `answer`.
        """
        ends = any(tag[0].startswith("</") for tag in _THOUGHT.finditer(text))
        return [] if ends else self._no_thought

    def next_turn(
        self, user_text: str, *, ended: bool, completion: Iterable[int] = ()
    ) -> list[int]:
        """Tokens that follow a sampled completion: its end, the user's turn, the next opening.

        What was sampled stays as it was sampled. The tokens are those that the template writes
        after an assistant's message in the middle of a conversation. Thoughts stay too, though
        most templates leave them out of earlier turns: the empty one that opens a turn (Qwen3 with
        `enable_thinking=False`), and what was thought in one that was opened.

        Args:
          user_text: what the user says next.
          ended: whether the completion already ends with a stop token.
          completion: what was sampled. If it was cut inside a thought, that is closed here, for
            the user's turn is no part of it.

        Raises:
          ValueError: the template rewrites earlier turns, so that appending to them would not give
            the conversation it renders.
        """
        text, answer_end = self._after_answer(user_text)
        if not self._continues(self._opened, text):
            raise ValueError(
                f"{self.name}: its chat template writes earlier turns differently from the turn "
                "being sampled, so no turn can be appended; choose other template_options, or "
                "another chat template"
            )
        ids = self._tokens_from(text, answer_end)
        end = self._first_control(ids)
        if ended:
            return ids if end is None else ids[end + 1 :]
        said = self._opened.rpartition(_QUESTION)[2] + self.decode(completion, skip_special=False)
        tag = self._open_thought(said)
        return ids if tag is None else [*self.encode(f"\n</{tag}>\n\n"), *ids]

    def offsets(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """Where each token is in `decode(ids)`, without encoding that text again.

        Sampled tokens need not be those that encoding would give. Tokens that share a character
        (its bytes, spread over them) all get it. Special tokens, and ids that the tokenizer does
        not know, have zero width.

        Returns:
          [(start, end)] in characters, end exclusive, one per token.
        """
        return self._locator.locate(ids)

    # Rendering

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message has a place in the template where it stays.

        The template may refuse it (Gemma 2), leave it out, or have it in the last turn of the user
        (Mistral Nemo), so that a conversation that goes on would not be the one that was begun. It
        then stands at the start of the user's first turn, see `render`.
        """
        system = {"role": "system", "content": _SYSTEM}
        try:
            opened = self._template([system, {"role": "user", "content": _QUESTION}], True)
            if _SYSTEM not in opened:
                return False
            return self._continues(opened, self._after_answer(_QUESTION, before=[system])[0])
        except ValueError:
            return False

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, a system message in front being part of the next if it must be."""
        if [m["role"] for m in messages[:2]] != ["system", "user"] or self.takes_system:
            return messages
        system, first, *rest = messages
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def _encode(self, text: str) -> Any:
        try:
            return self._writer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise ValueError(f"not Unicode text (a lone surrogate?): {text[:80]!r}") from None

    def _template(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The conversation as text, control tokens of the template in their secret spelling."""
        # A mark before each control token spelled in a message, then none before the template's.
        contents = "".join(message["content"] for message in messages)
        mark = next(c for c in map(chr, range(0xF0000, 0x10FFFE)) if c not in contents)
        marked = []
        for message in messages:
            tokens = self._special if message["role"] == "assistant" else self._control
            content = tokens.sub(lambda m: mark + m[0], message["content"])
            marked.append({"role": message["role"], "content": content})
        try:
            rendered = self.hugging_face.apply_chat_template(
                marked,
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._options,
            )
        except Exception as error:  # a template is a program: of any kind
            reason = f"{self.name}: the chat template refuses these messages: {error}"
            raise ValueError(reason) from error
        either = re.compile(f"{mark}(?:{self._control.pattern})|{self._control.pattern}")
        text = either.sub(
            lambda m: m[0] if m[0][0] == mark else self._spelling[m[0]], str(rendered)
        )
        return text.replace(mark, "")

    @cached_property
    def _opened(self) -> str:
        """A question and the opening of its answer."""
        text = self._template([{"role": "user", "content": _QUESTION}], True)
        if _QUESTION not in text:
            raise ValueError(f"{self.name}: its chat template drops what the user says")
        return text

    def _continues(self, opened: str, text: str) -> bool:
        """Whether a conversation goes on as `opened` ends, but for a thought, with the answer."""
        same = agreement(opened, text)
        left_out = self._spelled.sub("", opened[same:])
        goes_on = _THOUGHT.sub("", self._unspelled(text[same:]))
        return not left_out.strip() and goes_on.lstrip().startswith(_ANSWER)

    def _open_thought(self, text: str) -> str | None:
        """The tag of a thought that a turn of the assistant has begun and not ended."""
        tags = list(_THOUGHT.finditer(self._unspelled(text)))
        return None if not tags or tags[-1][0].startswith("</") else tags[-1][1]

    @cached_property
    def _no_thought(self) -> list[int]:
        """What ends the thought that a turn opens with, if it does, before an answer."""
        if self._open_thought(self._opened.rpartition(_QUESTION)[2]) is None:
            return []
        messages = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
        ]
        written, at = self._template(messages, False), len(self._opened)
        end = written.find(_ANSWER)
        if not written.startswith(self._opened) or end < at:
            raise ValueError(
                f"{self.name}: its chat template opens each turn with a thought, and has no way to "
                "write an answer without one, so none can be demonstrated"
            )
        return list(self._encode(written[at:end]).ids)

    def _unspelled(self, text: str) -> str:
        """Control tokens as they are known."""
        known = {spelled: token for token, spelled in self._spelling.items()}
        return self._spelled.sub(lambda match: known[match[0]], text)

    def _after_answer(self, user_text: str, *, before: Sequence[Message] = ()) -> tuple[str, int]:
        """A conversation of question, answer and `user_text`, and where its answer ends."""
        roles, contents = ("user", "assistant", "user"), (_QUESTION, _ANSWER, user_text)
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        messages = [*before, *turns]
        text = self._template(messages, True)
        at = text.find(_ANSWER)
        if at < 0:
            raise ValueError(f"{self.name}: its chat template drops earlier answers")
        return text, at + len(_ANSWER)

    def _tokens_from(self, text: str, at: int) -> list[int]:
        """Tokens of a rendered text from character `at` on, encoded in their context."""
        encoding = self._encode(text)
        for start, end in encoding.offsets:
            if start < at < end:
                raise ValueError(
                    f"{self.name}: what its chat template writes after an answer shares a token "
                    "with the answer's last word, so no turn can be appended"
                )
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [i for i, (start, end) in pairs if start >= at and end > at]

    def _first_control(self, ids: list[int]) -> int | None:
        """Index of the first token, after white space, if it is a control token."""
        for at, i in enumerate(ids):
            if self._backend.id_to_token(i) in self._spelling:
                return at
            if self._backend.decode([i], skip_special_tokens=False).strip():
                return None
        return None

    def _end_of_turn(self) -> int | None:
        ids = self._tokens_from(*self._after_answer(_QUESTION))
        end = self._first_control(ids)
        return None if end is None else ids[end]


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("no messages to render")
    for message in messages:
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise ValueError(f"a message has a role and a content of text, got {message!r}")
        if message["role"] not in _ROLES:
            raise ValueError(f"role {message['role']!r} is none of {', '.join(_ROLES)}")


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the strings, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")
