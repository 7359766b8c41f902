"""What an installation gets: dependencies, files, and floors that only lean on those below."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

import t2g_jax

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / "t2g_jax"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
CORE = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
TRAIN = [Requirement(line) for line in EXTRAS["train"]]


@pytest.mark.parametrize("requirement", CORE + TRAIN, ids=str)
def test_the_oldest_version_that_works_is_said_and_no_newest(requirement):
    assert [clause.operator for clause in requirement.specifier] == [">="]


@pytest.mark.parametrize("requirements", [CORE, TRAIN], ids=["core", "train"])
def test_requirements_are_sorted_and_need_no_accelerator(requirements):
    names = [requirement.name for requirement in requirements]
    assert names == sorted(names)
    extras = [extra for requirement in requirements for extra in requirement.extras]
    assert not [name for name in names + extras if re.search("cuda|tpu|rocm|torch", name)]


def test_what_importers_get_is_what_the_pure_functions_import():
    """And optax, which their examples are written with."""
    imported = {
        name.partition(".")[0]
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).with_suffix("").parts[0] in GROUND
        for name in imports_of(path)
    }
    libraries = imported - sys.stdlib_module_names - {"t2g_jax"}
    # Of one only a file is read, its dictionary.
    assert {r.name for r in CORE} == libraries | {"optax", "pyspellchecker"}


@pytest.mark.parametrize("extra", ["tasks", "tpu", "cuda12", "cuda13", "notebooks", "test", "dev"])
def test_extras_exist(extra):
    assert [Requirement(line) for line in EXTRAS[extra]]


def test_whoever_adds_to_the_command_gets_it():
    """`pip install "t2g_jax[tasks]"` is enough for a run; accelerators go with either half."""

    def reached(extra):
        named = {e for line in EXTRAS[extra] for e in _extras_of(line)}
        return {extra} | {deeper for e in named for deeper in reached(e)}

    light = {extra for extra in EXTRAS if "train" not in reached(extra)}
    assert light == {"tpu", "cuda12", "cuda13"}


def _extras_of(line):
    """The extras of this package that a requirement names."""
    requirement = Requirement(line)
    return requirement.extras if requirement.name == "t2g_jax" else set()


def test_extra_names_in_documents_exist():
    for document in [REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md")]:
        for extras in re.findall(r"(?:t2g_jax|\.)\[([a-z0-9,]+)\]", document.read_text()):
            assert set(extras.split(",")) <= set(EXTRAS), document


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", t2g_jax.__version__)
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"]["attr"] == "t2g_jax.version.__version__"


def test_every_data_file_is_packaged():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["t2g_jax"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    ignored = (".py", ".pyc")
    files = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file()
        and path.suffix not in ignored
        and "/." not in str(path.relative_to(PACKAGE.parent))
    }
    assert files <= packaged


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


# Which libraries the pure layer takes; docs/architecture.py has what imports what.
GROUND = {
    *("losses", "advantages", "chunked", "kl", "logprobs", "numerics", "reductions", "spans"),
    *("chunked_distillation", "deprecation", "divergences"),
}
GROUND_LIBRARIES = {"jax", "numpy", "optax", "einops", "rapidfuzz", "regex"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "t2g_jax":
                yield from (f"t2g_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def ground():
    paths = {path.relative_to(PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}
    return [
        pytest.param(path, id=str(name))
        for name, path in paths.items()
        if name.with_suffix("").parts[0] in GROUND
    ]


@pytest.mark.parametrize("path", ground())
def test_the_pure_layer_takes_few_libraries_and_nothing_else_of_ours(path):
    imported = set(imports_of(path))
    ours = {name.split(".")[1] for name in imported if name.startswith("t2g_jax.")}
    libraries = {name.split(".")[0] for name in imported} - {"t2g_jax"}
    assert ours <= GROUND | {"errors"}
    assert libraries - sys.stdlib_module_names <= GROUND_LIBRARIES
