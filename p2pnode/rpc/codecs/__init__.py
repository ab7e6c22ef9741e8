"""How tensors travel: as they are, or smaller and less exact. `names` says which ways there are."""
