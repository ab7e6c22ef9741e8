import contextlib

import pytest

from p2pnode.testing.daemons import Daemon


@pytest.fixture
def start(tmp_path):
    """Start daemons that end with the test; each name has a data directory of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda name, *arguments, **options: stack.enter_context(
            Daemon(tmp_path / name, *arguments, **options)
        )
