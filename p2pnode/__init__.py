"""p2pnode: deep-learning training on volunteers' machines, peer to peer."""

__version__ = "0.1.0"
