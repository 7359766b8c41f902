"""A tokenizer's folder in Hugging Face's format: what is read of it, checked and mended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typing_extensions import TypedDict

from t2g_jax.runtime import files

GENERATION = "generation_config.json"
"""Says which tokens end a completion."""

_OTHER_FILES = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")

_Token = str | dict[str, Any] | None


class _Named(TypedDict):
    name: str
    template: str


class _Tokens(TypedDict, total=False):
    """What `transformers` reads of tokenizer_config.json and special_tokens_map.json."""

    bos_token: _Token
    eos_token: _Token
    pad_token: _Token
    unk_token: _Token
    additional_special_tokens: list[str | dict[str, Any]] | None
    extra_special_tokens: list[str | dict[str, Any]] | dict[str, str | dict[str, Any]] | None
    added_tokens_decoder: dict[str, dict[str, Any]]
    chat_template: str | dict[str, str] | list[_Named] | None
    model_max_length: int | float | None


def read(directory: Path) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The tokenizer in a folder, with the chat template beside it, and the tokens that the folder
    says end a completion.

    Raises:
      FileNotFoundError: no such folder, or no tokenizer in it.
      T2GError: a file is damaged, it is named.
    """
    _require_tokenizer(directory)
    backend = _backend_of(directory)
    # By its tokenizer_class, `transformers` 5 may split text otherwise than this file says.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True
    )
    tokenizer = _without_unknown_pad(tokenizer, backend)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template_beside(directory)
    return tokenizer, _stop_ids(directory / GENERATION)


def make_readable_by_4(directory: Path) -> None:
    """Makes a folder's tokenizer_config.json what `transformers` 4, and who builds on it, reads."""
    path = directory / "tokenizer_config.json"
    about = files.read_json(path, dict)
    if about.get("tokenizer_class") == "TokenizersBackend":
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(about.get("extra_special_tokens"), list):
        about["additional_special_tokens"] = about.pop("extra_special_tokens")
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def write_stop_ids(stop_ids: Sequence[int], directory: Path) -> None:
    """Writes which tokens end a completion, as Hugging Face has it."""
    about = json.dumps({"eos_token_id": list(stop_ids)}, indent=1)
    (directory / GENERATION).write_text(about + "\n", encoding="utf-8")


def default_template(templates: str | Mapping[str, str], name: str) -> str:
    """The template that chats are written with, of one or of several by name."""
    if isinstance(templates, str):
        return templates
    if "default" not in templates:
        raise ValueError(
            f"{name}: it has chat templates for {', '.join(sorted(templates))}, but none is the "
            "default; put the one to write chats with beside them as chat_template.jinja"
        )
    return templates["default"]


def as_spelled(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer; if its special tokens are those of normalized text, a copy without that.

    So older files of Llama 2 have it, which find few of them in a text, and decode all.
    """
    if not any(t.special and t.normalized for t in tokenizer.get_added_tokens_decoder().values()):
        return tokenizer
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["normalized"] &= not token["special"]
    return Tokenizer.from_str(json.dumps(state))


def respell(tokenizer: Tokenizer, spelling: Mapping[str, str], name: str) -> Tokenizer:
    """A copy of a tokenizer in which control tokens answer only to their new spelling."""
    state = json.loads(tokenizer.to_str())
    state.update(truncation=None, padding=None, post_processor=None)
    for token in state["added_tokens"]:
        if token["content"] in spelling:  # found wherever the template writes it
            token.update(content=spelling[token["content"]], normalized=False, single_word=False)
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: [piece, score]
        model["vocab"] = [[spelling.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {spelling.get(piece, piece): i for piece, i in vocab.items()}
    if model.get("unk_token") in spelling:
        model["unk_token"] = spelling[model["unk_token"]]
    copy = Tokenizer.from_str(json.dumps(state))
    for token, spelled in spelling.items():
        if copy.encode(spelled, add_special_tokens=False).ids != [tokenizer.token_to_id(token)]:
            raise ValueError(f"{name}: its token {token!r} cannot be told apart from text")
    return copy


def _require_tokenizer(directory: Path) -> None:
    if (directory / "tokenizer.json").exists():
        return
    other = [name for name in _OTHER_FILES if (directory / name).is_file()]
    state = (
        f"has {other[0]}, but no tokenizer.json, which is what is read"
        if other
        else "has no tokenizer.json"
        if directory.is_dir()
        else "is no folder"
    )
    get = f"hf download <model> --include '*token*' '*.jinja' --local-dir {directory}"
    make = (
        "write one where `transformers` reads the other: "
        "`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`"
        if other
        else "make a tokenizer there with `train_tokenizer`"
    )
    raise FileNotFoundError(f"{directory} {state}; get it with `{get}`, or {make}")


def _backend_of(directory: Path) -> Tokenizer:
    """What tokenizer.json says.

    Raises:
      T2GError: it, or a file beside it, is damaged; `transformers` would not name the file.
    """
    mend = "put it back as it was, or fetch it again"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).exists():
            files.read_json(directory / name, _Tokens, mend=mend)
    for template in sorted(directory.glob("*.jinja")):
        files.read_text(template, mend=mend)
    text = files.read_text(directory / "tokenizer.json", mend=mend)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library has no other kind
        raise files.damaged(directory / "tokenizer.json", str(error), mend) from error


def _without_unknown_pad(
    tokenizer: PreTrainedTokenizerFast, backend: Tokenizer
) -> PreTrainedTokenizerFast:
    """The same tokenizer; without its pad_token if its tokenizer.json, `backend`, has it not.

    `transformers` would add it, as one token more than the model has rows.
    """
    pad = tokenizer.pad_token
    if pad is None or backend.token_to_id(str(pad)) is not None:
        return tokenizer
    names = {k: v for k, v in tokenizer.special_tokens_map.items() if k != "pad_token"}
    known = backend.get_vocab(with_added_tokens=True)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
    more = [token for _, token in sorted(added) if token.content not in known | {str(pad): 0}]
    backend.add_tokens(more)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=tokenizer.name_or_path,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **names,
    )


class _Template(TypedDict):
    chat_template: str


def _template_beside(directory: Path) -> str | None:
    """The template in chat_template.json, where processors of models that see have theirs."""
    file = directory / "chat_template.json"
    if not file.exists():
        return None
    return files.read_json(file, _Template, mend="repair or delete it")["chat_template"]


def _stop_ids(path: Path) -> list[int]:
    """The tokens that end a completion by a generation_config.json, if there is one."""
    if not path.exists():
        return []
    mend = "repair or delete it"
    found = files.read_json(path, dict, mend=mend).get("eos_token_id")
    ids = found if isinstance(found, list) else [found] * (found is not None)
    if not all(type(i) is int and i >= 0 for i in ids):
        raise files.damaged(path, "eos_token_id is no token id, nor a list of them", mend)
    return ids
