"""A realistic report made of deterministic, invented numbers: input for the tests, not a result.

Run it to look at the page:  python tests/report/sample_report.py page.html [samples]
"""

import dataclasses
import math
import random
import sys

from t2g_jax.report.contents import (
    Calibration,
    ClassScore,
    Curve,
    PhaseTime,
    ReliabilityBin,
    Report,
    ResultRow,
    Retry,
    Sample,
    TokenCell,
)

HOSTILE = (
    "<script>alert('pwned')</script><img src=x onerror=\"document.title='pwned'\">"
    "<a href=javascript:alert(1)>&lt;</a>{{ 7 * 7 }}"
)

_MATRIX_PROMPT = """Given a square matrix, for every cell find the distance to the nearest 0.
The distance between two adjacent cells is 1. Output the matrix of distances inside \\boxed{}.

Input:
1 1 0 1
0 1 1 1
1 1 1 1
1 0 1 1"""
_MATRIX = """For each cell I count the steps to the nearest 0.

1 1 0 1
0 1 1 2
1 1 2 3
1 0 1 1

The last row is easy, since its 0 is in column 2.
\\boxed{
1 1 0 1
0 1 1 2
1 1 2 3
1 0 1 1
}"""
_MATRIX_CRITIQUE = (
    "Rows 1, 2 and 4 do not all hold: in row 4 the last cell is two steps from the 0 in column 2, "
    "not one. In row 3 the last cell is three steps from every 0, which is right."
)
_PROSE_PROMPT = (
    "Summarize the post in one or two sentences.\n\nMy roommate of two years told me last week "
    "that she is moving out at the end of the month. We had agreed to renew the lease together and "
    "I already paid the deposit for the new term. She says she never promised anything. I do not "
    "want to lose the friendship, but I cannot cover her half of the rent on my own."
)
_PROSE = (
    "Roommate of two years is moving out at the end of the month although we had agreed to renew "
    "the lease; I have paid the deposit, cannot afford the rent alone, and my landlord is angry. "
    "I do not want to lose the friendship."
)
_PROSE_CRITIQUE = (
    "Covers the broken agreement and the money. The post never mentions an angry landlord, so that "
    "clause is invented. Keeping the friendship is the heart of the question and is there."
)


def report(samples: int = 12, *, hostile: bool = True) -> Report:
    rng = random.Random(0)
    return Report(
        title="RLTF on three reasoning tasks",
        subtitle="Qwen2.5-0.5B-Instruct, programmatic critiques, 400 optimizer steps, 3 seeds. "
        "Invented numbers: an example of the page.",
        created="2026-02-11T09:30:00+00:00",
        warnings=(
            "GRPO, one turn, step 380: the accuracy (38.1 %) is no higher than the floor (38.5 %)",
        ),
        results=_results(),
        curves=tuple(_curves(rng)),
        phases=(
            PhaseTime("annotate", 812.4),
            PhaseTime("reward_model", 2210.0),
            PhaseTime("rollouts", 9120.7),
            PhaseTime("judge", 604.2),
            PhaseTime("learn", 3310.9),
            PhaseTime("evaluate", 431.5),
        ),
        class_scores=(
            ClassScore("poor (−1)", 0.812, 0.634, 0.712, 18_230),
            ClassScore("neutral (0)", 0.941, 0.972, 0.956, 141_870),
            ClassScore("good (+1)", 0.774, 0.701, 0.736, 30_112),
        ),
        calibration=_calibration(),
        samples=tuple(_samples(samples, rng, hostile)),
        config_yaml=_CONFIG,
        environment={
            "t2g_jax": "0.1.0",
            "jax": "0.10.2",
            "devices": "16 × TPU v5 lite",
            "mesh": "data 2, fsdp 4, tensor 2",
            "python": "3.11.2",
            "seed": "0, 1, 2",
            "commit": "4f0c2a9d17e4",
        },
    )


def _calibration():
    def of(label, error, *rows):
        cells = (ReliabilityBin(low, round(low + 0.1, 1), *row) for low, *row in rows)
        return Calibration(label, error, tuple(cells))

    return (
        of("poor", 0.043, (0.0, 171_000, 0.021, 0.03), (0.4, 1_204, 0.46, 0.51), (0.9, 18, 1, 1)),
        of("neutral", 0.021, (0.9, 141_870, 0.962, 0.941)),
        of("good", 0.0125, (0.0, 160_100, 0.011, 0.012), (0.9, 30_112, 0.934, 0.9)),
    )


def _results():
    def row(method, task, before, after, width, floor, policy, tokens, seconds):
        def around(p, w):
            return max(0.0, p - w), min(1.0, p + w)

        return ResultRow(
            method, task, before, around(before, width / 2), after, around(after, width), floor,
            policy, tokens, tokens * 3, seconds,
        )  # fmt: skip

    path = "always answer “infeasible”"
    copy = "copy the input"
    constant = "the best constant assignment"
    return (
        row("GRPO, one turn", "shortest_path", 0.034, 0.385, 0.055, 0.385, path, 9_800_000, 5400),
        row("RLTF-SD", "shortest_path", 0.034, 0.830, 0.041, 0.385, path, 12_400_000, 11_520),
        row("RLTF-FM", "shortest_path", 0.034, 0.905, 0.032, 0.385, path, 13_900_000, 11_890),
        row("GRPO, one turn", "binary_matrix", 0.001, 0.125, 0.038, 0.125, copy, 8_700_000, 5100),
        row("RLTF-SD", "binary_matrix", 0.001, 0.976, 0.016, 0.125, copy, 11_100_000, 10_800),
        row("RLTF-FM", "binary_matrix", 0.001, 0.978, 0.015, 0.125, copy, 12_300_000, 11_010),
        row(
            "GRPO, one turn", "knights_knaves", 0.058, 0.373, 0.05, 0.06, constant, 9_100_000, 5230
        ),
        row("RLTF-SD", "knights_knaves", 0.058, 0.802, 0.044, 0.06, constant, 11_700_000, 10_950),
        row("RLTF-FM", "knights_knaves", 0.058, 0.880, 0.036, 0.06, constant, 12_800_000, 11_300),
    )


def _curves(rng):
    steps = tuple(float(step) for step in range(0, 401, 4))
    sparse = steps[::5]
    methods = {"GRPO, one turn": (0.385, 60), "RLTF-SD": (0.83, 90), "RLTF-FM": (0.905, 80)}
    for method, (top, time) in methods.items():

        def curve(metric, start, end, pace, noise, at=steps, method=method):
            values = [end + (start - end) * math.exp(-s / pace) + rng.gauss(0, noise) for s in at]
            return Curve(method, metric, "optimizer steps", at, tuple(values))

        accuracy = curve("shortest_path accuracy", 0.034, top, time, 0.012, sparse)
        yield dataclasses.replace(accuracy, values=tuple(max(0.0, v) for v in accuracy.values))
        yield curve("reward", -0.06, top, time, 0.035)
        yield curve("KL to reference (nats per token)", 0.0, 0.09 * top, 150, 0.002)
        yield curve("entropy (nats)", 1.3, 1.3 - 0.9 * top, 200, 0.02)
        mismatch = [rng.lognormvariate(-6, 0.6) for _ in steps]
        mismatch[40] = math.nan
        yield dataclasses.replace(
            curve("KL sampler to trainer (nats)", 0, 0, 1, 0), values=tuple(mismatch)
        )
        yield curve("completion length (tokens)", 240.0, 240 - 100 * top, 120, 6)


def _samples(count, rng, hostile):
    for index in range(count):
        where = {
            "method": ("RLTF-SD", "Text2Grad")[index % 2],
            "step": (1, 200, 400)[index * 3 // count],
        }
        if index == 1 and hostile:
            yield _sample(f"hostile {HOSTILE}", HOSTILE, f"First, {HOSTILE}</script>\nthen \u202e.",
                          HOSTILE, {"pwned": -1}, -0.1, rng)  # fmt: skip
        elif index % 3 == 2:
            sample = _sample(f"slf5k {index}", _PROSE_PROMPT, _PROSE, _PROSE_CRITIQUE,
                             {"my landlord is angry": -1, "do not want to lose the friendship": 1,
                              "agreed to renew the lease": 1}, 0.4, rng)  # fmt: skip
            yield dataclasses.replace(sample, **where)
        else:
            right = index % 2 == 0
            text = _MATRIX.replace("1 0 1 1", "1 0 1 2") if right else _MATRIX
            spans = {"1 0 1 1": -1, "1 1 2 3": 1}
            sample = _sample(f"binary_matrix {index}", _MATRIX_PROMPT, text, _MATRIX_CRITIQUE,
                             spans, (0.9, -1.0)[index % 2], rng)  # fmt: skip
            retries = () if right else (_retry(_MATRIX.replace("1 0 1 1", "1 0 1 2"), rng),)
            yield dataclasses.replace(sample, correct=right, retries=retries, **where)


def _sample(title, prompt, completion, critique, spans, reward, rng):
    cells = _cells(completion, spans, rng)
    guess = critique if rng.random() < 0.5 else "One row is wrong near its end; the rest holds."
    return Sample(title, prompt, critique, guess, reward, cells)


def _retry(completion, rng):
    """The repaired attempt, which nobody was asked about."""
    cells = [dataclasses.replace(cell, true=None) for cell in _cells(completion, {}, rng)]
    cells[0] = dataclasses.replace(cells[0], predicted=None)
    return Retry(tuple(cells), 1.0, correct=True)


def _cells(completion, spans, rng):
    labels = [0] * len(completion)
    for quote, label in spans.items():
        start = completion.find(quote)
        while start >= 0:
            labels[start : start + len(quote)] = [label] * len(quote)
            start = completion.find(quote, start + len(quote))
    cells, at, advantage = [], 0, 0.0
    for text in tokenize(completion):
        true = labels[at + len(text) - 1]
        at += len(text)
        predicted = max(-1.0, min(1.0, 0.82 * true + rng.gauss(0, 0.16)))
        advantage = 0.7 * advantage + 1.1 * true + rng.gauss(0, 0.15)
        cells.append(TokenCell(text, round(predicted, 4), float(true), round(advantage, 4)))
    return tuple(cells)


def tokenize(text: str) -> list[str]:
    """Pieces like a byte-pair tokenizer's: a word with the space before it, digits and newlines."""
    pieces, piece = [], ""
    for character in text:
        joins = piece and piece.strip(" ").isalpha() and character.isalpha()
        if joins or piece == " ":
            piece += character
        else:
            pieces += [piece] if piece else []
            piece = character
    return [*pieces, piece] if piece else pieces


_CONFIG = """\
# rltf_sd on shortest_path
phase: rltf
seed: 0
model:
  name: Qwen/Qwen2.5-0.5B-Instruct
  lora: {rank: 32, alpha: 64}
task:
  name: shortest_path
  test_prompts: 200
  samples_per_prompt: 8
rltf:
  turns: 2
  groups: 32
  samples: 8
  discount: 0.1
  self_distillation:
    coefficient: 0.1
    correction: none
    logprob_floor: -5.0
optimizer:
  learning_rate: 2.0e-5
  betas: [0.9, 0.95]
"""

if __name__ == "__main__":
    from t2g_jax.report.html import write

    number = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    print(write(report(number), sys.argv[1]))
