import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles(quick_compiles):
    with quick_compiles():
        yield
