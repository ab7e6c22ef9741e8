import pytest
import torch

from p2pnode.experts.states import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_means_every_element(dtype):
    large = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite([large, torch.ones(2, dtype=torch.int64), torch.empty(0)])
    for bad in (torch.nan, torch.inf, -torch.inf):
        large[7] = bad
        assert not all_finite([torch.ones(2), large])
    assert not all_finite([torch.tensor([torch.inf, -torch.inf])])
