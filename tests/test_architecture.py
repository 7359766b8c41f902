"""Imports run down, and in no circle; the picture of it is the one that the imports give."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
architecture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architecture)
FLOORS = (("below", ("a", "b")), ("above", ("c",)))


@pytest.fixture(scope="module")
def found():
    return architecture.imports(architecture.modules())


def test_imports_run_down_and_in_no_circle(found):
    assert architecture.broken(found) == []


def test_the_picture_is_that_of_the_imports(found):
    assert architecture.PICTURE.read_text("utf-8") == architecture.draw(found), (
        "run `python docs/architecture.py`"
    )


def package(folder, **modules):
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
    ],
)
def test_what_breaks_the_rule_is_named(tmp_path, modules, said):
    assert architecture.broken(package(tmp_path, **modules), FLOORS) == said
