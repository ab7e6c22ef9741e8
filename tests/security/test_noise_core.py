import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import (
    ConnectionClosedError,
    HandshakeError,
    NegotiationError,
    ProtocolError,
    SimultaneousOpenError,
)
from p2pnode.security.noise.core import CipherState, Handshake
from p2pnode.wire.keys import PrivateKey

DIALER = PrivateKey.from_seed(b"d" * 32)
LISTENER = PrivateKey.from_seed(b"l" * 32)
YAMUX = "/yamux/1.0.0"


def x25519(letter):
    return X25519PrivateKey.from_private_bytes(letter.encode() * 32)


def handshakes(*, dialer_muxers=(YAMUX,), listener_muxers=(YAMUX,), expected=LISTENER.peer_id):
    dialer = Handshake(
        "initiator", DIALER, muxers=dialer_muxers, expected=expected,
        static=x25519("s"), ephemeral=x25519("e"),
    )  # fmt: skip
    listener = Handshake(
        "responder", LISTENER, muxers=listener_muxers, static=x25519("S"), ephemeral=x25519("E")
    )
    return dialer, listener


def converse(dialer, listener, change=lambda step, message: message):
    """Run a handshake; returns its messages."""
    messages = []
    for step, (sender, receiver) in enumerate([(dialer, listener), (listener, dialer)] * 2):
        if step == 3:
            break
        assert sender.wants_to_send
        messages.append(sender.next_message())
        receiver.receive_message(change(step, messages[-1]))
    return messages


def test_both_sides_prove_who_they_are_and_agree():
    dialer, listener = handshakes()
    converse(dialer, listener)
    assert dialer.result.peer_id == LISTENER.peer_id
    assert listener.result.peer_id == DIALER.peer_id
    assert dialer.result.muxer == listener.result.muxer == YAMUX
    sealed = dialer.result.sender.encrypt(b"hello")
    assert listener.result.receiver.decrypt(sealed) == b"hello"
    sealed = listener.result.sender.encrypt(b"and back")
    assert dialer.result.receiver.decrypt(sealed) == b"and back"


def test_the_wire_is_pinned():
    # Fixed keys give fixed bytes (Ed25519 signatures are deterministic). A change of these is a
    # change of the protocol, and breaks every other libp2p implementation.
    first, second, third = converse(*handshakes())
    assert first == x25519("e").public_key().public_bytes_raw()
    assert (len(first), len(second), len(third)) == (32, 216, 184)
    assert second[:32] == x25519("E").public_key().public_bytes_raw()
    digest = hashlib.sha256(first + second + third).hexdigest()
    assert digest == "58b17df44b506e962249b289158d0dd9611b611e8dfc26b4e1623e35e696aaf2"


@pytest.mark.parametrize(
    ("dialer", "listener", "agreed"),
    [
        (["/a", "/b"], ["/b", "/a"], "/a"),
        (["/x", "/b"], ["/a", "/b"], "/b"),
        ([], ["/a"], None),
        (["/a"], [], None),
    ],
)
def test_the_dialers_first_muxer_that_the_listener_has_is_taken(dialer, listener, agreed):
    sides = handshakes(dialer_muxers=dialer, listener_muxers=listener)
    converse(*sides)
    assert [side.result.muxer for side in sides] == [agreed, agreed]


def test_no_common_muxer_fails():
    with pytest.raises(NegotiationError):
        converse(*handshakes(dialer_muxers=["/a"], listener_muxers=["/b"]))


def test_the_wrong_peer_is_refused_before_we_say_who_we_are():
    dialer, listener = handshakes(expected=DIALER.peer_id)
    with pytest.raises(HandshakeError, match="was expected"):
        converse(dialer, listener)
    assert listener.result is None


def test_a_key_without_proof_is_refused():
    class Impostor:
        public_key = LISTENER.public_key

        def sign(self, message):
            return DIALER.sign(message)

    dialer, _ = handshakes()
    with pytest.raises(HandshakeError, match="prove"):
        converse(dialer, Handshake("responder", Impostor()))


@given(step=st.integers(0, 2), position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_ends_the_handshake(step, position, flip):
    def change(number, message):
        if number != step:
            return message
        changed = bytearray(message)
        changed[position % len(message)] ^= flip
        return bytes(changed)

    dialer, listener = handshakes()
    with pytest.raises(HandshakeError):
        converse(dialer, listener, change)


@given(step=st.integers(0, 2), size=st.integers(0, 10_000))
def test_any_cut_ends_the_handshake(step, size):
    dialer, listener = handshakes()
    with pytest.raises(HandshakeError):
        converse(dialer, listener, lambda number, m: m[: size % len(m)] if number == step else m)


@given(st.binary(max_size=300))
def test_garbage_ends_the_handshake(garbage):
    _, listener = handshakes()
    if len(garbage) < 32:
        with pytest.raises(HandshakeError):
            listener.receive_message(garbage)
        return
    dialer, _ = handshakes()
    dialer.next_message()
    with pytest.raises(HandshakeError):
        dialer.receive_message(garbage)


def test_a_degenerate_key_is_refused():
    dialer, _ = handshakes()
    dialer.next_message()
    with pytest.raises(HandshakeError, match="degenerate"):
        dialer.receive_message(bytes(32) + b"x" * 100)


def test_a_replayed_reordered_or_dropped_message_does_not_decrypt():
    sender, receiver = CipherState(b"k" * 32), CipherState(b"k" * 32)
    first, second = sender.encrypt(b"1"), sender.encrypt(b"2")
    assert receiver.decrypt(first) == b"1"
    with pytest.raises(ProtocolError):
        receiver.decrypt(first)
    fresh = CipherState(b"k" * 32)
    with pytest.raises(ProtocolError):
        fresh.decrypt(second)


def test_the_last_nonce_is_never_used():
    cipher = CipherState(b"k" * 32)
    cipher._nonce = 2**64 - 2
    cipher.encrypt(b"the last")
    with pytest.raises(ConnectionClosedError, match="used up"):
        cipher.encrypt(b"one too many")


def test_two_that_begin_at_once_notice_that_both_have_dialled():
    one, _ = handshakes()
    other = Handshake("initiator", LISTENER, muxers=[YAMUX], expected=DIALER.peer_id)
    first, second = one.next_message(), other.next_message()
    for side, message in ((one, second), (other, first)):
        with pytest.raises(SimultaneousOpenError, match="dialled, too"):
            side.receive_message(message)
