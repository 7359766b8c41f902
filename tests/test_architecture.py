"""Imports run down, and in no circle; the picture of it is the one that the imports give."""

import importlib.util
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
architecture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architecture)
FLOORS = (("below", ("a", "b")), ("above", ("c",)))
INSIDE = "the front door, from inside"
A_X_B = "p.a.x imports p.b: up"


@pytest.fixture(scope="module")
def found():
    return architecture.imports(architecture.modules())


def test_imports_run_down_and_in_no_circle(found):
    assert architecture.broken(found) == []


def test_the_picture_is_that_of_the_imports(found):
    assert architecture.PICTURE.read_text("utf-8") == architecture.draw(found), (
        "run `python docs/architecture.py`"
    )


def test_the_readme_names_every_room_floor_by_floor():
    section = (ROOT / "README.md").read_text("utf-8").partition("## Where things are\n")[2]
    inside = section.partition("\nt2g_jax/\n")[2]
    named = []
    for line in itertools.takewhile(lambda line: line.startswith("  "), inside.splitlines()):
        if line.startswith("    "):
            named[-1][1].extend(line.strip().partition("  ")[0].split())
        else:
            named.append((line.strip(), []))
    assert [(title, tuple(rooms)) for title, rooms in named] == list(architecture.FLOORS)


def test_the_page_names_every_room_floor_by_floor():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = [
        (title, tuple(room.rstrip("/") for room in re.findall("`([^`]*)`", rooms)))
        for title, rooms in re.findall(r"^\| ([^|]+) \| (`[^|]+) \|", page, re.MULTILINE)
    ]
    assert named == list(architecture.FLOORS)


def write_package(folder, **modules):
    folder = folder / "p"
    for name, text in ({"__init__": ""} | modules).items():
        path = folder / f"{name.replace('__of__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return architecture.imports(architecture.modules(folder))


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"a": "", "b": "from p import a", "c": "import p.b\nfrom p.a import x"}, []),
        ({"a": "from p import c", "b": "", "c": ""}, ["p.a imports p.c: up"]),
        ({"a": "from p.b import x", "b": "", "c": ""}, ["p.a imports p.b: up"]),
        ({"a": "def f():\n    from p.c import x", "b": "", "c": ""}, ["p.a imports p.c: up"]),
        ({"a": "", "b": "", "c": "", "d": ""}, ["d has no floor"]),
        ({"a": "", "b": ""}, ["c is on a floor, but not there"]),
        (
            {
                "a": "",
                "b": "",
                "c__of____init__": "",
                "c__of__x": "import p.c.y",
                "c__of__y": "from p.c import x",
            },
            ["p.c.x → p.c.y → p.c.x: a circle"],
        ),
        (
            {"a": "", "b": "", "c__of____init__": "from p.c.x import z", "c__of__x": "import p.a"},
            [],
        ),
        # Relative imports are imports.
        ({"a": "from . import c", "b": "", "c": ""}, ["p.a imports p.c: up"]),
        ({"a": "", "b": "from .c import x", "c": ""}, ["p.b imports p.c: up"]),
        (
            {
                "a__of____init__": "from ..c import z",
                "a__of__x": "from ...c import z",
                "b": "",
                "c": "",
            },
            ["p.a imports p.c: up"],
        ),
        ({"a__of____init__": "", "a__of__x": "from ..b import z", "b": "", "c": ""}, [A_X_B]),
        ({"a__of____init__": "from . import x", "a__of__x": "", "b": "", "c": ""}, []),
        # A module that asks the package it lies in for a name.
        (
            {
                "a": "",
                "b": "",
                "c__of____init__": "from p.c.x import f\ng = 1",
                "c__of__x": "from p.c import g",
            },
            ["p.c → p.c.x → p.c: a circle"],
        ),
        (
            {
                "a": "",
                "b": "",
                "c__of____init__": "from .x import f",
                "c__of__x": "from . import g",
            },
            ["p.c → p.c.x → p.c: a circle"],
        ),
        # A package is imported with what is in it.
        (
            {
                "a": "",
                "b": "",
                "c__of____init__": "",
                "c__of__x": "from p.c.d.y import f",
                "c__of__d__of____init__": "from p.c.x import g",
                "c__of__d__of__y": "",
            },
            ["p.c.d → p.c.x → p.c.d: a circle"],
        ),
        # A package's own module looks up as any other.
        ({"a__of____init__": "import p.c", "b": "", "c": ""}, ["p.a imports p.c: up"]),
        # The front door is for those outside, and leads to the floors below it.
        ({"a": "from p import f", "b": "", "c": ""}, [f"p.a imports p: {INSIDE}"]),
        ({"a": "", "b": "", "c": "import p"}, [f"p.c imports p: {INSIDE}"]),
        ({"a": "", "b": "", "c": "from . import f"}, [f"p.c imports p: {INSIDE}"]),
        ({"__init__": "from p import a, b", "a": "", "b": "", "c": ""}, []),
        (
            {"__init__": "from p.c import f", "a": "", "b": "", "c": ""},
            ["p imports p.c: above the front door"],
        ),
    ],
)
def test_what_breaks_the_rule_is_named(tmp_path, modules, said):
    assert architecture.broken(write_package(tmp_path, **modules), FLOORS, "below") == said
