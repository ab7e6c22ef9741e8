import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.ping.core import check_echo


def test_the_same_bytes_are_taken_and_others_are_refused():
    check_echo(b"x" * 32, b"x" * 32)
    with pytest.raises(ProtocolError, match="not what was sent"):
        check_echo(b"x" * 32, b"y" * 32)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_whatever_comes_back_is_what_was_sent_or_breaks_the_rule(sent, received):
    try:
        check_echo(sent, received)
    except ProtocolError:
        assert sent != received
    else:
        assert sent == received
