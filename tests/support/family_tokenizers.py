"""Small tokenizers with the structure of the families': their control tokens, their way of cutting
text, what they add to it, and chat templates of the same shape. Only the vocabularies are tiny."""

import dataclasses
import json
from collections.abc import Callable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from t2g_jax.data.tokenizer import ChatTokenizer

CORPUS = [
    "The cat sat on the mat, and the answer is \\boxed{12}.\n",
    "You are a careful solver. Be brief.\n\n",
    "user model system assistant INST SYS\n",
    "0 1 1\n1 2 1\n0 0 2\n",
    "Look again at row 2: the path is wrong; a critique says where.\n",
    "naïve café 漢字 👍🏽\n",
] * 8


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family's tokenizer looks.

    bos: what a conversation begins with; None: nothing.
    turns: BOS tokens in a conversation of two questions.
    end: what ends a turn; stops: all that ends a completion.
    system: how a system message is written, of "own" (a turn of its own), "template" (the template
      folds it into the user's turn) or "refused".
    loose: the template writes a blank before the end of a turn that a model does not sample.
    """

    make: Callable[[], ChatTokenizer]
    bos: str | None
    end: str
    stops: tuple[str, ...]
    system: str = "own"
    turns: int = 1
    loose: bool = False


# Byte-level BPE

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(
    specials: Sequence[str], digits: str, template: str, *, added=(), bos=None, nfc=False, **names
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(ignore_merges=True))
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS % digits + _REST), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(list(specials))
    backend.add_tokens([AddedToken(content, normalized=False) for content in added])
    if bos is not None:  # which would put a second BOS before a rendered conversation
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
                ),
            ]
        )
        names["bos_token"] = bos
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    wrapped.chat_template = template
    return wrapped


_LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content']|trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday is ' + date_string + '\\n\\n' + system }}
{{- '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content']|trim }}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""


def llama3() -> ChatTokenizer:
    names = "begin_of_text end_of_text start_header_id end_header_id eom_id eot_id python_tag"
    specials = [f"<|{name}|>" for name in names.split()]
    wrapped = _bytes(
        specials,
        "{1,3}",
        _LLAMA3,
        bos="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    )
    return ChatTokenizer(wrapped, stop_ids=wrapped.convert_tokens_to_ids(llama3_stops))


llama3_stops = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]

_CHATML = """\
{%- if messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- elif default %}
{{- '<|im_start|>system\\n' + default + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}{% if m['role'] != 'system' %}
{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def qwen2() -> ChatTokenizer:
    """Without a system message it writes one of its own."""
    wrapped = _bytes(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "",
        "{% set default = 'You are a careful solver.' %}" + _CHATML,
        nfc=True,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    ids = wrapped.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return ChatTokenizer(wrapped, stop_ids=ids)


def byte_template(template: str) -> ChatTokenizer:
    """Qwen's tokenizer with another template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return ChatTokenizer(_bytes(specials, "", template, eos_token="<|im_end|>"))


# The thoughts of turns before the last question are dropped; no thought at all is an empty one.
_QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- set content = m['content'] %}{% set thought = '' %}
{%- if m['role'] == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if m['role'] == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
{%- set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}
{%- endif %}
{{- '<|im_start|>' + m['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


def qwen3(**options: bool) -> ChatTokenizer:
    wrapped = _bytes(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "",
        _QWEN3,
        added=["<think>", "</think>"],
        nfc=True,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    ids = wrapped.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return ChatTokenizer(wrapped, template_options=options, stop_ids=ids)


# Opens each turn with a thought that the model ends. The first writes an answer without one as an
# empty thought, if it is the last; the second (R1-Distill, QwQ) writes no thoughts at all.
_QWEN35 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- set content = m['content'] %}{% set thought = '' %}
{%- if m['role'] == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if m['role'] == 'assistant' and loop.index0 > ns.last %}
{%- set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}
{%- endif %}
{{- '<|im_start|>' + m['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""
_QWQ = """\
{%- for m in messages %}
{%- set content = m['content'].split('</think>')[-1].lstrip('\\n') %}
{{- '<|im_start|>' + m['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""


def _thinks(template: str, added: Sequence[str], options: dict[str, bool]) -> ChatTokenizer:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    wrapped = _bytes(specials, "", template, added=added, eos_token="<|im_end|>")
    return ChatTokenizer(wrapped, template_options=options)


def qwen35(**options: bool) -> ChatTokenizer:
    return _thinks(_QWEN35, ["<think>", "</think>"], options)


def qwq(*, tokens: bool = True) -> ChatTokenizer:
    """tokens: whether <think> is a token of its own."""
    return _thinks(_QWQ, ["<think>", "</think>"] if tokens else [], {})


def qwq_with_a_switch() -> ChatTokenizer:
    """One whose turns open without a thought where `enable_thinking` is false."""
    thought = "('' if enable_thinking is defined and not enable_thinking else '<think>\\n')"
    template = _QWQ.replace("assistant\\n<think>\\n'", f"assistant\\n' + {thought}")
    return _thinks(template, ["<think>", "</think>"], {})


# Roles are ordinary text, and one token is both the beginning and the end.
_OLMO2 = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'assistant' %}
{{- '<|assistant|>\\n' + m['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}
{%- else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{%- endfor %}"""


def olmo2() -> ChatTokenizer:
    wrapped = _bytes(
        ["<|endoftext|>", "<|pad|>"],
        "{1,3}",
        _OLMO2,
        bos="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
    )
    return ChatTokenizer(wrapped)


def olmo3() -> ChatTokenizer:
    wrapped = _bytes(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        "{1,3}",
        "{% set default = 'You are a helpful function-calling assistant.' %}" + _CHATML,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
    )
    return ChatTokenizer(wrapped)


# BPE of SentencePiece: blanks are characters, unknown ones are bytes


def _pieces(
    specials: Sequence[str], template: str, *, normalizer=None, pre_tokenizer=None, strip, **names
) -> PreTrainedTokenizerFast:
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    learner.train_from_iterator(CORPUS[:5], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [piece for piece in learned["vocab"] if piece not in tokens]
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    backend.add_special_tokens(list(specials))
    bos = names["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)
    wrapped.chat_template = template
    return wrapped


# Each exchange has a BOS of its own; the system message stands in the first question.
_LLAMA2 = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{%- set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if m['role'] == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + m['content']|trim + ' [/INST]' }}
{%- else %}{{ ' ' + m['content']|trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""


def llama2() -> ChatTokenizer:
    return ChatTokenizer(
        _pieces(
            ["<unk>", "<s>", "</s>"],
            _LLAMA2,
            normalizer=normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            ),
            strip=True,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="</s>",
        )
    )


_MISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- endfor %}"""


def mistral() -> ChatTokenizer:
    return ChatTokenizer(
        _pieces(
            ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
            _MISTRAL,
            pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False),
            strip=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    )


# The system message stands in the last question, wherever that is.
_NEMO = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}{% set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}
{%- set first = system + '\\n\\n' if loop.last and system is defined else '' %}
{{- '[INST]' + first + m['content'] + '[/INST]' }}
{%- else %}{{ m['content'] + eos_token }}{% endif %}
{%- endfor %}"""


def nemo() -> ChatTokenizer:
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    return ChatTokenizer(_bytes(specials, "", _NEMO, bos="<s>", eos_token="</s>"))


_GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
SYSTEM
{%- endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') + m['content']|trim }}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def _gemma(system: str) -> ChatTokenizer:
    wrapped = _pieces(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "{% set prefix = '' %}" + _GEMMA.replace("SYSTEM", system),
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        strip=False,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    return ChatTokenizer(wrapped)


def gemma2() -> ChatTokenizer:
    return _gemma("{{- raise_exception('System role not supported') }}")


def gemma3() -> ChatTokenizer:
    return _gemma(
        "{%- set prefix = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}"
    )


FAMILIES = {
    "llama2": Family(llama2, "<s>", "</s>", ("</s>",), system="template", turns=2, loose=True),
    "llama3": Family(llama3, "<|begin_of_text|>", "<|eot_id|>", tuple(llama3_stops)),
    "mistral": Family(mistral, "<s>", "</s>", ("</s>",), system="refused"),
    "qwen2": Family(qwen2, None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family(qwen3, None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "gemma2": Family(
        gemma2, "<bos>", "<end_of_turn>", ("<end_of_turn>", "<eos>"), system="refused"
    ),
    "gemma3": Family(
        gemma3, "<bos>", "<end_of_turn>", ("<end_of_turn>", "<eos>"), system="template"
    ),
    "olmo2": Family(olmo2, "<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",)),
    "olmo3": Family(olmo3, None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
}
