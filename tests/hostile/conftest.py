import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_collections():
    """Keep what is loaded out of the collections after each test, which look for lost sockets."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
