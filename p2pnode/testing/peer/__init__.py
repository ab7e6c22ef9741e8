"""A peer for other implementations of libp2p to be tested against, and by.

`python -m p2pnode.testing.peer` serves; with `--dial ADDR` it checks whoever listens there. See
docs/interop.md.
"""
