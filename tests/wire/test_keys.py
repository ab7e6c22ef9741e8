import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InvalidKeyError
from p2pnode.wire.keys import MAX_KEY_BYTES, PrivateKey, PublicKey
from p2pnode.wire.pb import keys_pb2

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "js_libp2p_keys.json").read_text())
# What js-libp2p's privateKeyToProtobuf gives for the seed 07…07.
SEVENS_PUBLIC = "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"
SEVENS_PRIVATE = "08011240" + "07" * 32 + SEVENS_PUBLIC


def marshal(kind, data):
    return keys_pb2.PublicKey(Type=kind, Data=data).SerializeToString()


def der(public):
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("known", KEYS, ids=lambda known: known["kind"])
def test_signatures_of_js_libp2p_verify(known):
    key = PublicKey.from_bytes(bytes.fromhex(known["public_key"]))
    signature = bytes.fromhex(known["signature"])
    message = known["message"].encode()
    assert key.kind == known["kind"]
    assert key.verify(message, signature)
    assert not key.verify(message + b"!", signature)
    assert not key.verify(message, signature[:-1] + bytes((signature[-1] ^ 1,)))


def test_ecdsa_keys_verify():
    private = ec.generate_private_key(ec.SECP256R1())
    key = PublicKey.from_bytes(marshal(keys_pb2.ECDSA, der(private.public_key())))
    assert key.verify(b"m", private.sign(b"m", ec.ECDSA(hashes.SHA256())))
    assert not key.verify(b"n", private.sign(b"m", ec.ECDSA(hashes.SHA256())))
    assert str(key.peer_id).startswith("Qm")


def test_a_private_key_has_the_bytes_js_libp2p_gives_it():
    key = PrivateKey.from_seed(b"\x07" * 32)
    assert key.to_bytes().hex() == SEVENS_PRIVATE
    assert key.public_key.protobuf.hex() == "08011220" + SEVENS_PUBLIC
    again = PrivateKey.from_bytes(bytes.fromhex(SEVENS_PRIVATE))
    assert again.peer_id == key.peer_id


def test_the_older_96_byte_form_with_the_public_key_twice_is_read():
    old = "08011260" + "07" * 32 + SEVENS_PUBLIC * 2
    assert PrivateKey.from_bytes(bytes.fromhex(old)).to_bytes().hex() == SEVENS_PRIVATE


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "ff",
        "08011240" + "07" * 64,  # halves that do not belong together
        "08011260" + "07" * 32 + SEVENS_PUBLIC + "00" * 32,
        "08011220" + "07" * 32,  # a seed alone
        "08021240" + "07" * 32 + SEVENS_PUBLIC,  # another kind
    ],
)
def test_a_broken_private_key_is_refused(encoded):
    with pytest.raises(InvalidKeyError):
        PrivateKey.from_bytes(bytes.fromhex(encoded))


@given(st.binary(max_size=128))
def test_any_bytes_are_refused_or_become_a_key_that_verifies_nothing_false(data):
    try:
        key = PublicKey.from_bytes(data)
    except InvalidKeyError:
        return
    assert not key.verify(b"message", bytes(64))


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_become_a_whole_private_key(data):
    try:
        key = PrivateKey.from_bytes(data)
    except InvalidKeyError:
        return
    assert key.public_key.verify(b"m", key.sign(b"m"))


def test_a_key_that_is_not_of_the_kind_it_says_is_refused():
    curve = der(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(InvalidKeyError, match="kind"):
        PublicKey.from_bytes(marshal(keys_pb2.RSA, curve))


def test_rsa_keys_that_are_too_small_are_refused():
    small = der(rsa.generate_private_key(65537, 1024).public_key())
    with pytest.raises(InvalidKeyError, match="1024 bits"):
        PublicKey.from_bytes(marshal(keys_pb2.RSA, small))


def test_oversized_keys_are_refused_before_they_are_parsed():
    with pytest.raises(InvalidKeyError, match="too large"):
        PublicKey.from_bytes(marshal(keys_pb2.RSA, bytes(MAX_KEY_BYTES)))


def test_a_key_in_an_unusual_field_order_gets_the_same_id():
    key = PrivateKey.from_seed(b"\x07" * 32).public_key
    swapped = key.protobuf[2:] + key.protobuf[:2]
    assert PublicKey.from_bytes(swapped).peer_id == key.peer_id
