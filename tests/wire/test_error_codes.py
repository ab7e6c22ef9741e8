import pytest

from p2pnode.errors import Limit, ResourceLimitError
from p2pnode.wire.error_codes import (
    ConnectionCode,
    StreamCode,
    connection_code,
    connection_reason,
    stream_code,
    stream_reason,
)


def test_the_numbers_are_those_of_libp2p():
    # libp2p/specs, error-codes; go-libp2p, core/network: streams begin one higher.
    assert {each.name: each.value for each in StreamCode} == {
        "NONE": 0,
        "NEGOTIATION_FAILED": 0x1001,
        "RESOURCE_LIMIT_EXCEEDED": 0x1002,
        "RATE_LIMITED": 0x1003,
        "PROTOCOL_VIOLATION": 0x1004,
        "SUPPLANTED": 0x1005,
        "GARBAGE_COLLECTED": 0x1006,
        "SHUTDOWN": 0x1007,
        "GATED": 0x1008,
    }
    shifted = {each.name: each.value and each.value - 1 for each in StreamCode}
    assert {each.name: each.value for each in ConnectionCode} == shifted


@pytest.mark.parametrize(
    ("limit", "stream", "connection"),
    [
        (Limit.PEER_BYTES, 0x1002, 0x1001),
        (Limit.PEER_STREAM_RATE, 0x1003, 0x1002),
        (None, 0x1002, 0x1001),
    ],
)
def test_a_refusal_has_its_code(limit, stream, connection):
    error = ResourceLimitError("full", limit)
    assert (stream_code(error), connection_code(error)) == (stream, connection)


def test_codes_are_said_in_words_where_they_are_known():
    assert stream_reason(0x1002) == "code 0x1002, resource limit exceeded"
    assert connection_reason(0x1002) == "code 0x1002, rate limited"
    assert stream_reason(77) == connection_reason(77) == "code 77"
