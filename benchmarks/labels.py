"""Labeling completions: one forward pass of a span-reward head, or word scores written as JSON."""

from __future__ import annotations

import json
import pathlib
import random
import re
import tempfile

import jax
import numpy as np
import torch

from benchmarks.measure import Section, compared, in_turns
from benchmarks.twins import generate, shape, twins
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import pad_prompts, sample
from t2g_jax.training.batch import pack
from t2g_jax.training.forward import Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUESTION = "How do models learn from text feedback?"
REQUEST = "Score every word of the answer from -1 to 1."


def measure(*, small: bool = False) -> Section:
    count, words, turns = (2, 3, 1) if small else (32, 100, 3)
    answers, tokenizer = _answers(count, words)
    config = shape(small=small, vocab_size=-(-tokenizer.vocab_size // 64) * 64)
    params, model = twins(config, with_heads=("span_head",))

    rows = [TokenSequence([*prompt, *tokenizer.encode(text)]) for prompt, text in answers]
    length = max(map(len, rows))
    prompts = [[*item.tokens.tolist(), *tokenizer.next_turn(REQUEST, ended=False)] for item in rows]
    written = [len(tokenizer.encode(scores(text))) for _, text in answers]
    new = 8 if small else max(written)
    tokens, lengths = pad_prompts(prompts)
    sampling = Sampling(new, stop_ids=(), temperature=0.0)
    keys = jax.random.split(jax.random.key(0), count)

    def marked():
        batch = pack(rows, length=length)
        return jax.device_get(score(params, batch, Need.SPAN_LOGITS, model=config))

    def ours():
        out = sample(params, tokens, lengths, keys, config=config, sampling=sampling)
        return [tokenizer.decode(line.tolist()) for line in jax.device_get(out.tokens)]

    width = max(map(len, prompts))
    left = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def theirs():
        out = generate(model, left, new, mask=mask, greedy=True)[:, width:]
        return [tokenizer.decode(line) for line in out.tolist()]

    against_torch = in_turns(marked, theirs, turns=turns)
    against_ours = in_turns(marked, ours, turns=turns)
    text = f"""
{count} answers of {words} words of prose ({np.mean(list(map(len, rows))):.0f} tokens with their
prompt), {config.layers} layers × {config.width} on both sides. The generative model writes
`{scores("such a list")}`, {np.mean(written):.0f} tokens on average with a tokenizer that has seen
such lists. It decodes greedily and stops after the longest ({new} tokens), as an untrained one
would not end by itself; a critique before the scores, and their parsing, are not counted.
"""
    return compared(
        "Labeling completions",
        text,
        against_torch.row("`transformers` writes", "≥ 50 ×"),
        against_ours.row("our own sampler writes", ""),
        theirs="generative",
    )


def scores(answer: str) -> str:
    """What a generative reward model would write: every word and its score."""
    return json.dumps([[word, (-1, 0, 1)[len(word) % 3]] for word in answer.split()])


def _answers(count: int, words: int) -> tuple[list[tuple[list[int], str]], ChatTokenizer]:
    """Prompts as tokens and answers as text; and the tokenizer, which has seen all of these."""
    pages = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
    prose = [
        word for page in pages for word in page.split() if re.fullmatch("[A-Za-z',.;:]+", word)
    ]
    starts = random.Random(0).sample(range(len(prose) - words), 8 * count)
    texts = [" ".join(prose[start : start + words]) for start in starts]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([*texts, *map(scores, texts), REQUEST, QUESTION], 4096, folder)
        tokenizer = ChatTokenizer.load(folder)
    prompt = tokenizer.render([{"role": "user", "content": QUESTION}])
    return [(prompt, text) for text in texts[:count]], tokenizer
