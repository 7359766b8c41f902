"""Compares mathematical answers; a program of its own, see `math_answers`.

Reads lines {"answer", "completion", "seconds"} and writes a line for each: whether the completion's
expression "agrees" with the answer's, and whether one was "found" in each of the two.
"""

import functools
import json
import os
import resource
import sys
import warnings

MEMORY_BYTES = 4 * 2**30
MARKS = ("$", "\\(", "\\[", "\\boxed", "\\begin")


def main() -> None:
    """Answers until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    warnings.simplefilter("ignore")
    for what, most in ((resource.RLIMIT_DATA, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(
            what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()

    @functools.lru_cache(maxsize=4096)
    def parsed_answer(answer: str, seconds: int) -> list:
        # An expression that stands alone is one whether or not it is marked as LaTeX.
        marked = answer if any(mark in answer for mark in MARKS) else f"${answer}$"
        return parse(marked, targets, parsing_timeout=seconds)

    def compared(answer: str, completion: str, seconds: int) -> dict[str, bool]:
        gold = parsed_answer(answer, seconds)
        said = parse(completion, targets, parsing_timeout=seconds)
        agrees = bool(gold and said and verify(gold, said, timeout_seconds=seconds))
        return {"agrees": agrees, "answer_found": bool(gold), "found": bool(said)}

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = compared(**json.loads(line))
        except Exception:  # of the parser or of SymPy: nothing that could be compared
            reply = {"agrees": False, "answer_found": False, "found": False}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
