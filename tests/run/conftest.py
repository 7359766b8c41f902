import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    with compiled_once():
        yield
