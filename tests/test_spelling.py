"""American spelling, as jax and optax have it: in code, tests, pages and configurations."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BRITISH = re.compile(
    r"(?<![a-z])(?:un|re|de|mis)?(?:"
    r"(?:behavi|col|fav|flav|hon|hum|lab|neighb|rum)ours?(?!ce)"
    r"|cent(?:re|red|res|ring)|met(?:re|res)|fib(?:re|res)"
    r"|(?:dial|model|label|level|signal|travel|total)(?:led|ling)"
    r"|(?:character|custom|emphas|final|general|initial|material|maxim|minim|normal|optim|organ|penal"
    r"|parallel|quant|random|real|recogn|regular|serial|special|stabil|summar|synchron|token|util"
    r"|vector)is(?:e|ed|er|ers|es|ing|ation|ations)"
    r"|(?:ana|para)lys(?:e|ed|er|es|ing)"
    r"|(?:acknowledge|judge)ment|artefact|catalogue|dialogue|fulfil|grey|learnt|licence|misspelt"
    r"|programme(?!r|d)|spelt|whilst"
    r")(?![a-z])",
    re.IGNORECASE,
)
# What tells of old names, and this file.
ASIDE = (
    "CHANGELOG.md",
    "t2g_jax/deprecation.py",
    "tests/test_deprecation.py",
    "tests/test_spelling.py",
)
OLD_NAMES = re.compile(r"^ *(keep_old_names\(|\"group_centred\":).*$", re.MULTILINE)


def tracked():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    names = [name for name in listed.stdout.splitlines() if name not in ASIDE]
    return [name for name in names if pathlib.Path(name).suffix not in (".npz", ".png", ".svg")]


def test_no_tracked_file_is_spelled_as_british_english():
    found = [
        f"{name}: {match[0]}"
        for name in tracked()
        if (ROOT / name).is_file()
        for match in BRITISH.finditer(OLD_NAMES.sub("", (ROOT / name).read_text("utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "word",
    ["colours", "_INK_ON_COLOUR", "centred", "tokenise", "Modelling", "unlabelled", "analyse"],
)
def test_what_is_refused(word):
    assert BRITISH.search(word)


@pytest.mark.parametrize(
    "word",
    ["four", "resource", "precise", "noise", "analysis", "programmer", "promise", "greyhound"],
)
def test_what_is_not(word):
    assert not BRITISH.search(word)
