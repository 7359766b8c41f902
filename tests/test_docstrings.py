"""Every public function and class of the pure layer shows how it is used, and the examples run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import t2g_jax
from t2g_jax import losses, spans

MODULES = (
    *(t2g_jax.advantages, t2g_jax.kl, t2g_jax.logprobs, t2g_jax.reductions),
    *(importlib.import_module(f"t2g_jax.{name}") for name in ("divergences", "deprecation")),
    *(
        importlib.import_module(f"{package.__name__}.{found.name}")
        for package in (losses, spans)
        for found in pkgutil.iter_modules(package.__path__)
    ),
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def _public():
    """What can be imported by name from the package, its modules and `losses` and `spans`."""
    packages = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in (t2g_jax, losses, spans)
        for name in package.__all__
    }
    modules = {
        f"{module.__name__}.{name}": thing
        for module in (t2g_jax.advantages, t2g_jax.kl, t2g_jax.logprobs, t2g_jax.reductions)
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }
    return {
        name: thing
        for name, thing in (packages | modules).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and not _is_alias(thing)
    }


def _is_alias(thing):
    """A type such as `Literal[…]`, which has no docstring of its own."""
    return getattr(thing, "__module__", "typing") == "typing"


@pytest.mark.parametrize("name", sorted(_public()))
def test_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(_public()[name].__doc__ or "")
    assert examples, f"the docstring of {name} has no >>> example"
    assert any(example.want for example in examples), f"the example of {name} shows no result"


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
    assert runner.run(example, out=said.append).failed == 0, "".join(said)
