import pytest
from daemons import Daemon


@pytest.fixture
def start(tmp_path):
    """Start daemons that end with the test; each name has a data directory of its own."""
    daemons = []

    def start(name, *arguments, **options):
        daemons.append(Daemon(tmp_path / name, *arguments, **options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()
