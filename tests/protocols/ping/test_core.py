import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.ping.core import check_echo


def test_the_same_bytes_are_taken_and_others_are_refused():
    check_echo(b"x" * 32, b"x" * 32)
    with pytest.raises(ProtocolError, match="not what was sent"):
        check_echo(b"x" * 32, b"y" * 32)
