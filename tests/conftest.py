"""What holds for all tests."""

from hypothesis import settings

# How long an example takes tells how busy the machine is, and nothing else.
settings.register_profile("p2pnode", deadline=None)
settings.load_profile("p2pnode")
