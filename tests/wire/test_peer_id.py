import json
from pathlib import Path

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InvalidKeyError
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "js_libp2p_keys.json").read_text())
# libp2p/specs, peer-ids: the examples of its text section.
SPEC_RSA = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
SPEC_RSA_CID = "bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe"


@pytest.mark.parametrize("known", KEYS, ids=lambda known: known["kind"])
def test_ids_of_js_libp2p_keys_are_derived_and_read_in_each_text_form(known):
    peer_id = PublicKey.from_bytes(bytes.fromhex(known["public_key"])).peer_id
    assert str(peer_id) == known["peer_id"]
    assert PeerId.from_text(known["peer_id"]) == peer_id
    assert PeerId.from_text(known["cid_base32"]) == peer_id
    assert PeerId.from_text(known["cid_base36"]) == peer_id


def test_the_examples_of_the_specification_name_one_peer():
    assert PeerId.from_text(SPEC_RSA) == PeerId.from_text(SPEC_RSA_CID)
    assert str(PeerId.from_text(SPEC_RSA_CID)) == SPEC_RSA


def test_small_keys_are_held_in_the_id_and_large_ones_are_hashed():
    small, large = b"k" * 42, b"k" * 43
    assert PeerId.from_public_key_bytes(small).inline_key_bytes == small
    assert PeerId.from_public_key_bytes(large).inline_key_bytes is None
    assert PeerId.from_public_key_bytes(large)[:2] == b"\x12\x20"


@given(st.binary(min_size=32, max_size=32))
def test_text_and_bytes_survive_a_round_trip(seed):
    peer_id = PrivateKey.from_seed(seed).peer_id
    assert PeerId.from_text(str(peer_id)) == peer_id
    assert PeerId(bytes(peer_id)) == peer_id


@given(st.text(max_size=80))
def test_other_text_is_refused_or_is_a_whole_id(text):
    try:
        peer_id = PeerId.from_text(text)
    except InvalidKeyError:
        return
    assert PeerId.from_text(str(peer_id)) == peer_id


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_are_kept(data):
    try:
        assert bytes(PeerId(data)) == data
    except InvalidKeyError:
        return


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12D3KooW",
        "Qm" + "0" * 44,
        "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
        base58.b58encode(b"\x13\x20" + bytes(32)).decode(),
        base58.b58encode(b"\x12\x20" + bytes(31)).decode(),
        base58.b58encode(b"\x00\x2b" + bytes(43)).decode(),
        "k" + "z" * 300,
    ],
)
def test_what_is_not_a_peer_id_is_refused(text):
    with pytest.raises(InvalidKeyError):
        PeerId.from_text(text)


def test_the_short_form_ends_like_the_long_one():
    peer_id = PrivateKey.from_seed(bytes(32)).peer_id
    assert str(peer_id).endswith(peer_id.short.removeprefix("…"))
    assert len(peer_id.short) == 9
