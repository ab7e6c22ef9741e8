"""Hosting experts: modules, optimisers, batching, the device loop and checkpoints."""
