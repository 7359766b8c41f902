"""Every public function and class of the pure layer shows how it is used, and the examples run."""

import doctest
import importlib
import inspect
import pkgutil
import sys

import pytest

import t2g_jax
from t2g_jax import losses, spans

INNER = {  # of which nothing is public, and whose functions say which public one they are of
    *("chunked", "chunked_distillation"),
    *("spans.page", "spans.reading", "spans.sameness", "spans.search"),
}
GROUND = ("advantages", "deprecation", "divergences", "kl", "logprobs", "numerics", "reductions")
MODULES = [
    importlib.import_module(f"t2g_jax.{name}")
    for name in (
        *GROUND,
        *(f"losses.{found.name}" for found in pkgutil.iter_modules(losses.__path__)),
        *(f"spans.{found.name}" for found in pkgutil.iter_modules(spans.__path__)),
    )
    if name not in INNER
]
FINDER = doctest.DocTestFinder(exclude_empty=True)


def _public():
    """What can be imported by name from the package, its modules and `losses` and `spans`."""
    named = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in (t2g_jax, losses, spans)
        for name in package.__all__
    }
    named |= {
        f"{module.__name__}.{name}": thing
        for module in MODULES
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }
    return {
        name: thing
        for name, thing in named.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and getattr(thing, "__module__", "typing") != "typing"  # as `Literal[…]` has
        and not getattr(thing, "_is_protocol", False)
    }


@pytest.mark.parametrize("name", sorted(_public()))
def test_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(_public()[name].__doc__ or "")
    assert examples, f"the docstring of {name} has no >>> example"


EXAMPLES = {
    example.name: example
    for module in MODULES
    for example in FINDER.find(module)
    if example.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name):
    """As they stand, and with nothing but what they import: a reader can paste them."""
    example, said = EXAMPLES[name], []
    example.globs = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST, verbose=False)
    before = set(sys.modules)
    assert runner.run(example, out=said.append).failed == 0, "".join(said)
    for module in set(sys.modules) - before:
        if sys.modules[module].__spec__ is None:  # which the example made, of no file
            del sys.modules[module]
