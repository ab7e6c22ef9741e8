import pytest
import torch

from p2pnode.config import HostingSettings


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def settings():
    return HostingSettings(hidden_dim=8, seed=3)
