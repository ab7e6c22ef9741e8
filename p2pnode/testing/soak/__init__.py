"""A long life in a short time: one daemon, very many calls, trainers that come and go.

`python -m p2pnode.testing.soak` starts a real daemon that hosts experts, and divides a million
calls into waves. In each wave trainers connect, each with an identity of its own, make some
hundreds of calls, a few of them malformed, and leave, in good order or not. Between two waves
nobody is there, and the daemon's own figures say what it holds: memory, tasks, file descriptors.
What is more after the last wave than it was after the first few has leaked.
"""
