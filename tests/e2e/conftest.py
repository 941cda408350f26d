"""A served demo model for the tests of a module."""

from collections.abc import Iterator

import pytest

from serve_process import Served, start_serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One replica of the demo model behind the router, shared by the tests of a module."""
    served = start_serve(tmp_path_factory.mktemp("serve") / "serve.log")
    yield served
    served.stop()
