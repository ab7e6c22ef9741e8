import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.autonat import messages
from p2pnode.protocols.autonat.messages import (
    DialData,
    DialDataRequest,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    V1Answer,
    V1Status,
)
from p2pnode.wire.addresses import parse_address, with_p2p
from p2pnode.wire.keys import PrivateKey

PEER = PrivateKey.from_seed(bytes(32)).peer_id
ADDRESS = parse_address("/ip4/1.2.3.4/tcp/4001")
OTHER = parse_address("/ip6/2001:db8::1/udp/4001/quic-v1")
NONCE = 0x0123456789ABCDEF

addresses = st.sampled_from([ADDRESS, OTHER])


def test_a_request_of_version_1_has_these_bytes():
    assert messages.encode_v1_request(PEER, (ADDRESS,)) == bytes.fromhex(
        "080012340a320a26" + bytes(PEER).hex() + "1208" + ADDRESS.to_bytes().hex()
    )


def test_an_answer_of_version_1_has_these_bytes():
    answer = V1Answer(status=V1Status.OK, address=ADDRESS)
    encoded = messages.encode_v1_answer(answer)
    assert encoded == bytes.fromhex("08011a0c08001a08" + ADDRESS.to_bytes().hex())


def test_messages_of_version_2_have_these_bytes():
    for message, expected in [
        (
            DialRequest(addresses=(ADDRESS,), nonce=NONCE),
            "0a130a08" + ADDRESS.to_bytes().hex() + "11efcdab8967452301",
        ),
        (
            DialResponse(
                status=ResponseStatus.OK, index=1, dial_status=DialStatus.E_DIAL_BACK_ERROR
            ),
            "120708c80110011865",
        ),
        (DialDataRequest(index=1, size=30_000), "1a06080110b0ea01"),
        (DialData(size=2), "22040a020000"),
    ]:
        assert messages.encode_v2(message).hex() == expected
    assert messages.encode_dial_back(NONCE).hex() == "09efcdab8967452301"
    assert messages.DIAL_BACK_RESPONSE == b""


@given(st.lists(addresses, max_size=5))
def test_requests_of_version_1_come_back_as_they_were(asked):
    encoded = messages.encode_v1_request(PEER, tuple(asked))
    assert messages.decode_v1_request(encoded, limit=9) == (PEER, tuple(asked))


@given(st.sampled_from(V1Status), st.text(st.characters(categories=["L"]), max_size=9), addresses)
def test_answers_of_version_1_come_back_as_they_were(status, text, address):
    answer = V1Answer(status=status, text=text, address=address)
    assert messages.decode_v1_answer(messages.encode_v1_answer(answer)) == answer


@given(
    st.one_of(
        st.builds(
            DialRequest,
            addresses=st.lists(addresses, max_size=5).map(tuple),
            nonce=st.integers(0, 2**64 - 1),
        ),
        st.builds(DialDataRequest, index=st.integers(0, 2**32 - 1), size=st.integers(0, 2**64 - 1)),
        st.builds(DialData, size=st.integers(0, 4096)),
        st.builds(
            DialResponse,
            status=st.sampled_from(ResponseStatus),
            index=st.integers(0, 2**32 - 1),
            dial_status=st.sampled_from(DialStatus),
        ),
    )
)
def test_messages_of_version_2_come_back_as_they_were(message):
    assert messages.decode_v2(messages.encode_v2(message), limit=9) == message


@given(st.integers(0, 2**64 - 1))
def test_nonces_come_back_as_they_were(nonce):
    assert messages.decode_dial_back(messages.encode_dial_back(nonce)) == nonce


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for decode in (
        lambda: messages.decode_v1_request(data, limit=4),
        lambda: messages.decode_v1_answer(data),
        lambda: messages.decode_v2(data, limit=4),
        lambda: messages.decode_dial_back(data),
        lambda: messages.check_dial_back_response(data),
    ):
        try:
            decode()
        except ProtocolError:
            continue


def test_an_address_that_cannot_be_read_keeps_its_place():
    raw = messages.pb.Message2()
    raw.dialRequest.addrs.extend([b"\xff\xff", ADDRESS.to_bytes(), b""])
    request = messages.decode_v2(raw.SerializeToString(), limit=9)
    assert request.addresses == (None, ADDRESS, None)


def test_who_is_named_at_the_end_of_an_address_is_left_out():
    encoded = messages.encode_v1_request(PEER, (with_p2p(ADDRESS, PEER),))
    assert messages.decode_v1_request(encoded, limit=9)[1] == (ADDRESS,)


def test_no_more_addresses_are_read_than_the_limit_says():
    encoded = messages.encode_v2(DialRequest(addresses=(ADDRESS,) * 9, nonce=1))
    assert len(messages.decode_v2(encoded, limit=3).addresses) == 3


@pytest.mark.parametrize("status", [1, 99, 301])
def test_an_unknown_status_is_refused(status):
    raw = messages.pb.Message(type=1)
    raw.dialResponse.status = status
    with pytest.raises(ProtocolError, match="unknown status"):
        messages.decode_v1_answer(raw.SerializeToString())


def test_a_piece_of_dial_data_must_not_be_longer_than_4096_bytes():
    with pytest.raises(ProtocolError, match="4097"):
        messages.decode_v2(messages.encode_v2(DialData(size=4097)), limit=1)


def test_an_answer_is_no_request():
    with pytest.raises(ProtocolError, match="no dial"):
        messages.decode_v1_request(messages.encode_v1_answer(V1Answer(status=V1Status.OK)), limit=1)
