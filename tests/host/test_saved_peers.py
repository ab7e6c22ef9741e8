import base64
import json
import sys

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.host.peerstore import KnownAddress, KnownPeer, Origin, Peerstore
from p2pnode.host.saved_peers import COPIED_AT_ONCE, FORMAT, SavedPeers
from p2pnode.testing.keys import ForeignKey
from p2pnode.wire.addresses import parse_address, tcp_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.records import PeerRecord

KEY = PrivateKey.from_seed(b"\x01" * 32)
RSA = ForeignKey.generate("RSA")
ADDRESS = tcp_address("10.0.0.1", 1)
TEXT = str(ADDRESS)


def record_of(key):
    return PeerRecord(peer_id=key.peer_id, seq=7, addresses=(ADDRESS,)).seal(key)


PEERS = {
    KEY.peer_id: KnownPeer(addresses={ADDRESS: KnownAddress(Origin.TOLD, 5.5)}),
    RSA.peer_id: KnownPeer(
        addresses={
            ADDRESS: KnownAddress(Origin.CERTIFIED, 6.0),
            parse_address("/dns4/node.example/tcp/1/ws"): KnownAddress(Origin.CONNECTED, 7.0),
        },
        preferred=parse_address("/dns4/node.example/tcp/1/ws"),
        key=RSA.public_key,
        record=record_of(RSA),
        seq=7,
    ),
}


def b64(data):
    return base64.b64encode(data).decode()


def test_what_is_written_is_read_with_every_field():
    assert FORMAT.parse(FORMAT.render(PEERS)) == PEERS
    assert FORMAT.parse(FORMAT.render({})) == {}


def test_a_person_can_read_it():
    document = json.loads(FORMAT.render(PEERS))
    assert document["format"] == 2
    assert document["peers"][str(KEY.peer_id)] == {"addresses": {TEXT: ["told", 5.5]}}
    assert document["peers"][str(RSA.peer_id)]["addresses"][TEXT] == ["certified", 6.0]


def file_with(**fields):
    return json.dumps(
        {"format": 2, "peers": {str(KEY.peer_id): {"addresses": {TEXT: ["told", 1]}, **fields}}}
    )


FORGED = bytearray(record_of(KEY))
FORGED[-1] ^= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 2 * sys.getrecursionlimit(),
        '{"format": 1, "peers": {}}',
        '{"format": 2, "peers": []}',
        '{"format": 2, "peers": {"nobody": {"addresses": {}}}}',
        file_with(addresses={"/nowhere": ["told", 1]}),
        file_with(addresses={TEXT: ["heard", 1]}),
        file_with(addresses={TEXT: ["told", None]}),
        file_with(addresses={TEXT: ["told", float("nan")]}),
        file_with(addresses={TEXT: ["told"]}),
        file_with(addresses=[TEXT]),
        file_with(preferred="/nowhere"),
        file_with(key="?"),
        file_with(key=b64(b"no key")),
        file_with(key=b64(RSA.public_key.protobuf)),
        file_with(record=b64(b"no record")),
        file_with(record=b64(FORGED)),
        file_with(record=b64(record_of(RSA))),
        file_with(record=7),
    ],
)
def test_a_broken_file_is_told_apart(text):
    with pytest.raises(ValueError, match=r".+"):
        FORMAT.parse(text)


def nested(inner):
    names = st.sampled_from(["format", "peers", "addresses", "key", "record", "preferred"])
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), nested, max_leaves=8)


@given(JSON)
def test_any_json_is_refused_or_read(document):
    for text in (json.dumps(document), json.dumps({"format": 2, "peers": document})):
        try:
            FORMAT.parse(text)
        except ValueError:
            continue


@given(st.dictionaries(st.sampled_from(["addresses", "key", "record", "preferred"]), JSON))
def test_any_peer_is_refused_or_read(fields):
    try:
        FORMAT.parse(json.dumps({"format": 2, "peers": {str(KEY.peer_id): fields}}))
    except ValueError:
        return


async def test_others_run_while_many_peers_are_saved_and_those_may_go_meanwhile(tmp_path):
    peerstore = Peerstore(NetworkSettings())
    peers = [PrivateKey.from_seed(n.to_bytes(32, "big")).peer_id for n in range(1000)]
    for each in peers:
        peerstore.add_addresses(each, [ADDRESS], 1e9, trio.current_time())
    path = tmp_path / "peers.json"
    saved = SavedPeers(path, peerstore, [].append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(saved.save)
        await trio.lowlevel.checkpoint()
        peerstore.forget_address(peers[-1], ADDRESS)
        assert not path.exists()
        for _ in range(1000 // COPIED_AT_ONCE // 2):
            await trio.lowlevel.checkpoint()
        assert not path.exists()
    assert set(FORMAT.parse(path.read_text())) == set(peers[:-1])
