"""Every decoder of bytes from elsewhere, against messages that are nearly right.

Random bytes seldom get past the first tag of a protobuf. What is drawn here has the wire format
of one, to the depth of the real messages, with anything in its fields.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import DhtSettings
from p2pnode.errors import (
    HandshakeError,
    InvalidAddressError,
    InvalidKeyError,
    NegotiationError,
    ProtocolError,
)
from p2pnode.protocols.identify import core as identify
from p2pnode.protocols.kad import messages as kad
from p2pnode.protocols.kad.core import KadCore
from p2pnode.security.noise.core import Handshake
from p2pnode.wire import varint
from p2pnode.wire.addresses import parse_address, read_address
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.records import DOMAIN, PAYLOAD_TYPE, PeerRecord

KEY = PrivateKey.from_seed(bytes(32))
OTHER = PrivateKey.from_seed(b"\x01" * 32)
ADDRESS = parse_address("/ip4/127.0.0.1/tcp/1")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@st.composite
def fields(draw, contents):
    """One field: a small number, any wire type, and something that fits it or lies about it."""
    kind = draw(st.sampled_from([VARINT, FIXED64, BYTES, BYTES, BYTES, FIXED32]))
    tag = varint.encode(draw(st.integers(1, 12)) << 3 | kind)
    if kind == VARINT:
        return tag + varint.encode(draw(st.integers(0, 2**63 - 1) | st.integers(0, 6)))
    if kind == BYTES:
        content = draw(contents)
        lie = draw(st.sampled_from([0] * 9 + [5]))
        return tag + varint.encode(len(content) + lie) + content
    return tag + draw(st.binary(min_size=4, max_size=8))


leaves = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=10).map(str.encode),
    st.sampled_from([b"\xc3\x28", ADDRESS.to_bytes(), bytes(KEY.peer_id), KEY.public_key.protobuf]),
)
protobufs = st.recursive(
    leaves,
    lambda inner: st.lists(fields(inner), max_size=6).map(b"".join),
    max_leaves=12,
)


@given(st.lists(protobufs, max_size=3))
@settings(max_examples=200, deadline=None)
def test_identify_takes_or_refuses_it(messages):
    try:
        said = identify.decode(messages, KEY.public_key, ADDRESS, limit=8)
    except ProtocolError:
        return
    assert all(isinstance(each, str) for each in (*said.protocols, said.agent))
    assert said.agent.isprintable()


@given(st.lists(protobufs, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_dht_answers_or_refuses_it(requests):
    core = KadCore(KEY.peer_id, DhtSettings(), {})
    for number in range(30):
        core.table.receive_alive(PrivateKey.from_seed(bytes([number] * 32)).peer_id, 0.0)
    for data in requests:
        try:
            request = kad.decode(data)
            answer = core.receive_request(OTHER.peer_id, request, kad.Contact, 0.0, 1000.0)
        except ProtocolError:
            continue
        if answer is not None:
            assert kad.decode(kad.encode(answer)) == answer


@given(protobufs)
@settings(max_examples=200, deadline=None)
def test_the_noise_handshake_takes_or_refuses_it_as_a_payload(payload):
    class Forger(Handshake):
        def _payload(self):
            return payload

    dialer, listener = Forger("initiator", OTHER), Handshake("responder", KEY, muxers=["/yamux"])
    listener.receive_message(dialer.next_message())
    dialer.receive_message(listener.next_message())
    with pytest.raises((HandshakeError, NegotiationError)):
        listener.receive_message(dialer.next_message())


@given(protobufs)
@settings(max_examples=200, deadline=None)
def test_a_record_that_is_well_signed_is_taken_or_refused(payload):
    for data in (payload, seal(KEY, DOMAIN, PAYLOAD_TYPE, payload)):
        try:
            record = PeerRecord.open(data)
        except ProtocolError:
            continue
        assert record.peer_id == KEY.peer_id


@given(protobufs)
@settings(max_examples=200, deadline=None)
def test_keys_envelopes_and_addresses_are_taken_or_refused(data):
    for decode, error in (
        (PublicKey.from_bytes, InvalidKeyError),
        (PrivateKey.from_bytes, InvalidKeyError),
        (lambda each: open_envelope(each, DOMAIN), ProtocolError),
        (read_address, InvalidAddressError),
    ):
        try:
            decode(data)
        except error:
            continue
