import socket

import pytest

from p2pnode.config import NetworkSettings
from p2pnode.testing.certificates import write_certificate


def has_ip6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def _ip6():
    if not has_ip6():
        pytest.skip("this machine has no IPv6 loopback")


@pytest.fixture(scope="session")
def tls_settings(tmp_path_factory):
    """A certificate for this machine, for `node.example`, and trust in it."""
    files = write_certificate(tmp_path_factory.mktemp("tls"), ["node.example"])
    return NetworkSettings(
        tls_certificate=str(files.certificate),
        tls_key=str(files.key),
        tls_authorities=str(files.certificate),
    )
