"""The thin client: remote experts as ordinary PyTorch modules."""
