"""What the package imports is declared: a dependency, or of an extra for what is optional."""

import ast
import importlib.metadata
import re
import sys
import tomllib

# Only in functions that say which extra to install when it is not there.
OPTIONAL = {
    "reasoning_gym": "tasks",
    "libtpu": "tpu",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "matplotlib": "study",
    "math_verify": "math",
    "datasets": "datasets",
}


def imported(root):
    """Top-level modules that the package imports, each with a file that does."""
    found = {}
    for path in (root / "t2g_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: path.relative_to(root) for name in names}
    return {
        name: path
        for name, path in found.items()
        if name not in sys.stdlib_module_names and name != "t2g_jax"
    }


def distributions(lines):
    return {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in lines}


def test_every_import_is_declared(root):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = distributions(project["dependencies"] + extras["train"])
    provided = importlib.metadata.packages_distributions()
    undeclared = {}
    for module, path in imported(root).items():
        names = {name.lower().replace("_", "-") for name in provided.get(module, [module])}
        allowed = declared | distributions(extras.get(OPTIONAL.get(module), []))
        if not names & allowed:
            undeclared[module] = str(path)
    assert not undeclared


def test_no_dependency_is_declared_for_nothing(root):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    provided = importlib.metadata.packages_distributions()
    used = {
        name.lower().replace("_", "-")
        for module in imported(root)
        for name in provided.get(module, [module])
    }
    declared = project["dependencies"] + project["optional-dependencies"]["train"]
    # TFDS reads with the one; of the other only a file is read, its dictionary.
    assert distributions(declared) - used == {"array-record", "pyspellchecker"}
