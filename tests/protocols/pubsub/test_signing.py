import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from p2pnode.protocols.pubsub.messages import Message, RpcLimits, decode
from p2pnode.protocols.pubsub.signing import find_fault, message_id, sign
from p2pnode.wire.keys import PrivateKey

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "js_gossipsub.json").read_text(encoding="utf-8")
)
KEY = PrivateKey.from_seed(bytes([7]) * 32)
MESSAGE = sign(KEY, "news", b"data", 258)


def fault(message=MESSAGE, *, strict=True, **changes):
    return find_fault(dataclasses.replace(message, **changes), strict_sign=strict)


def golden(kind):
    (found,) = [each for each in GOLDEN["messages"] if each["kind"] == kind]
    (message,) = decode(bytes.fromhex(found["rpc"]), RpcLimits(1, 1, 1)).messages
    return message, found


@pytest.mark.parametrize("kind", ["Ed25519", "secp256k1", "RSA"])
def test_messages_signed_by_js_hold(kind):
    message, _ = golden(kind)
    assert fault(message) is None
    assert fault(message, data=b"other") == "its signature does not hold"


def test_we_sign_as_js_does():
    theirs, found = golden("Ed25519")
    ours = sign(KEY, found["topic"], bytes.fromhex(found["data"]), int(found["seqno"], 16))
    assert ours == dataclasses.replace(theirs, key=b"")  # js adds a key that the id holds


def test_a_key_is_needed_only_where_the_id_does_not_hold_it():
    for kind in ("Ed25519", "secp256k1"):
        assert fault(golden(kind)[0], key=b"") is None
    assert fault(golden("RSA")[0], key=b"") == "its key is malformed"


def test_what_is_signed_leaves_out_signature_and_key():
    peer = bytes(KEY.peer_id).hex()
    expected = "0a26" + peer + "120464617461" + "1a080000000000000102" + "22046e657773"
    assert MESSAGE.signed_bytes().hex() == expected
    assert dataclasses.replace(MESSAGE, key=b"k", signature=b"s").signed_bytes().hex() == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"signature": b""}, "it is not signed"),
        ({"author": None}, "it is not signed"),
        ({"signature": bytes(64)}, "its signature does not hold"),
        ({"topic": "other"}, "its signature does not hold"),
        ({"seqno": bytes(8)}, "its signature does not hold"),
        ({"seqno": bytes(7)}, "its sequence number has a wrong length"),
        ({"seqno": b""}, "its sequence number has a wrong length"),
        ({"key": b"rubbish"}, "its key is malformed"),
        (
            {"key": PrivateKey.from_seed(bytes(32)).public_key.protobuf},
            "its key is not its author's",
        ),
        ({"author": PrivateKey.from_seed(bytes(32)).peer_id}, "its signature does not hold"),
    ],
)
def test_strict_signing_takes_only_what_its_author_signed(changes, sentence):
    assert fault(**changes) == sentence


@pytest.mark.parametrize("named", ["author", "seqno", "signature", "key"])
def test_without_signing_nothing_may_be_named(named):
    bare = Message(topic="news", data=b"data")
    assert fault(bare, strict=False) is None
    given = dataclasses.replace(MESSAGE, key=b"k")
    assert fault(bare, strict=False, **{named: getattr(given, named)}) is not None


def test_ids_are_author_and_number_or_a_hash():
    assert message_id(MESSAGE) == bytes(KEY.peer_id) + bytes.fromhex("0000000000000102")
    assert message_id(Message(topic="t", data=b"d")) == hashlib.sha256(b"d").digest()
