import gc
import tracemalloc

import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_collections():
    """Keep what is loaded out of the collections after each test, which look for lost sockets."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def traced():
    """Trace allocations, as `withstand` needs it."""
    tracemalloc.start()
    yield
    tracemalloc.stop()
