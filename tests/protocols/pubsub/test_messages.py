import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.pubsub.messages import (
    MAX_ID_BYTES,
    MAX_PX_PEERS,
    MAX_RECORD_BYTES,
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    PeerHint,
    Prune,
    Rpc,
    RpcLimits,
    decode,
    encode,
)
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "js_gossipsub.json").read_text(encoding="utf-8")
)
LIMITS = RpcLimits(messages=100, controls=100, ids=100)
PEER = PrivateKey.from_seed(bytes(32)).peer_id
JS_CONTROL = Rpc(
    subscriptions=(Interest("a", wanted=True), Interest("b", wanted=False)),
    control=(
        IDontWant((b"\4\4\4",)),
        IHave("a", (b"\1\1\1", b"\2\2\2")),
        IWant((b"\3\3\3",)),
        Graft("a"),
        Prune("b", (PeerHint(PeerId.from_text(GOLDEN["control"]["peer"]), b"\t\t\t"),), 60),
    ),
)

ids = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5).map(tuple)
topics = st.text(max_size=20)
hints = st.builds(PeerHint, st.just(PEER), st.binary(max_size=20))
messages = st.builds(
    Message,
    topic=topics,
    data=st.binary(max_size=100),
    author=st.none() | st.just(PEER),
    seqno=st.binary(max_size=8),
    signature=st.binary(max_size=64),
    key=st.binary(max_size=40),
)


def lists(*strategies):
    return [st.lists(each, max_size=3) for each in strategies]


def by_topic(*strategies):
    return [st.lists(each, max_size=3, unique_by=lambda one: one.topic) for each in strategies]


rpcs = st.builds(
    lambda interests, published, *control: Rpc(
        subscriptions=tuple(interests),
        messages=tuple(published),
        control=tuple(each for kind in control for each in kind),
    ),
    *by_topic(st.builds(Interest, topics, st.booleans())),
    *lists(
        messages,
        st.builds(IDontWant, ids),
        st.builds(IHave, topics, ids),
        st.builds(IWant, ids),
    ),
    *by_topic(
        st.builds(Graft, topics),
        st.builds(
            Prune,
            topics,
            st.lists(hints, max_size=3).map(tuple),
            st.none() | st.integers(0, 2**64 - 1),
        ),
    ),
)


def test_what_js_writes_is_read():
    assert decode(bytes.fromhex(GOLDEN["control"]["rpc"]), LIMITS) == JS_CONTROL


@pytest.mark.parametrize("golden", GOLDEN["messages"], ids=lambda each: each["kind"])
def test_a_message_of_js_is_read_and_written_to_the_byte(golden):
    (message,) = decode(bytes.fromhex(golden["rpc"]), LIMITS).messages
    assert str(message.author) == golden["author"]
    assert message.topic == golden["topic"]
    assert message.data.hex() == golden["data"]
    assert message.seqno.hex() == golden["seqno"]
    assert message.signature.hex() == golden["signature"]
    assert message.key.hex() == golden["key"]
    assert encode(Rpc(messages=(message,))).hex() == golden["rpc"]


def test_what_we_write_has_these_bytes():
    peer = bytes(PEER).hex()
    assert Interest("ab", wanted=True).encode().hex() == "0a06080112026162"
    assert Interest("ab", wanted=False).encode().hex() == "0a06080012026162"
    assert Graft("ab").encode().hex() == "1a040a026162"
    assert Prune("ab", (), 60).encode().hex() == "22060a026162183c"
    assert Prune("ab").encode().hex() == "22040a026162"
    assert Prune("a", (PeerHint(PEER, b"r"),), 1).encode().hex() == (
        "22320a0161" + "122b0a26" + peer + "120172" + "1801"
    )
    assert IHave("a", (b"xy", b"z")).encode().hex() == "0a0a0a01611202787912017a"
    assert IWant((b"xy", b"z")).encode().hex() == "12070a0278790a017a"
    assert IDontWant((b"xy",)).encode().hex() == "2a040a027879"
    assert (
        encode(Rpc(control=(Graft("a"), Graft("b")))).hex() == "1a0a" + "1a030a0161" + "1a030a0162"
    )
    assert encode(Rpc()) == b""


@given(rpcs)
def test_what_is_written_is_read_again(rpc):
    assert decode(encode(rpc), LIMITS) == rpc


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(data):
    with contextlib.suppress(ProtocolError):
        decode(data, LIMITS)


@given(rpcs, st.data())
def test_a_damaged_rpc_is_read_or_refused(rpc, data):
    damaged = bytearray(encode(rpc) or b"\0")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        decode(bytes(damaged), LIMITS)


def nested(tag, count, body=b""):
    return (bytes([tag]) + varint.prefixed(body)) * count


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (nested(0x0A, 101), 100),  # subscriptions
        (nested(0x12, 101), 100),  # messages
        (nested(0x1A, 101), 100),  # control messages, which would be merged
        (nested(0x7A, 101), 100),  # unknown fields
        (nested(0x1A, 1, nested(0x1A, 101)), 100),  # GRAFTs
        (nested(0x1A, 2, nested(0x0A, 60)), 100),  # IHAVEs, over two control messages
        (nested(0x1A, 1, nested(0x22, 1, nested(0x12, 101))), 100),  # peers of a PRUNE
        (nested(0x1A, 1, nested(0x22, 60, nested(0x12, 1))), 100),  # of several PRUNEs
    ],
)
def test_too_many_elements_are_refused_before_they_are_decoded(data, limit, monkeypatch):
    monkeypatch.setattr("p2pnode.wire.pb.pubsub_pb2.RPC.FromString", None, raising=False)
    with pytest.raises(ProtocolError, match="too many elements"):
        decode(data, RpcLimits(messages=limit, controls=limit, ids=limit))


def test_as_many_elements_as_allowed_are_taken():
    interests = tuple(Interest(f"{n}", wanted=True) for n in range(50))
    grafts = tuple(Graft(f"{n}") for n in range(49))
    rpc = Rpc(subscriptions=interests, control=grafts)
    assert decode(encode(rpc), LIMITS) == rpc


def test_of_what_is_said_twice_about_one_topic_the_last_word_counts():
    said = Rpc(
        subscriptions=tuple(Interest("a", wanted=n % 2 == 0) for n in range(50)),
        control=(*[Graft("a")] * 20, Prune("b", (), 1), Prune("b", (), 2)),
    )
    assert decode(encode(said), LIMITS) == Rpc(
        subscriptions=(Interest("a", wanted=False),), control=(Graft("a"), Prune("b", (), 2))
    )


@pytest.mark.parametrize("kind", [lambda ids: IHave("a", ids), IWant, IDontWant])
@pytest.mark.parametrize("lists", [1, 10])
def test_far_more_ids_than_are_read_are_refused_before_they_are_decoded(kind, lists, monkeypatch):
    bomb = encode(Rpc(control=(kind((b"x",) * (310 // lists)),) * lists))
    many = encode(Rpc(control=(kind((b"x",) * (290 // lists)),) * lists))
    assert sum(len(each.ids) for each in decode(many, LIMITS).control) == 100
    monkeypatch.setattr("p2pnode.wire.pb.pubsub_pb2.RPC.FromString", None, raising=False)
    with pytest.raises(ProtocolError, match="too many elements"):
        decode(bomb, LIMITS)


@given(st.lists(st.binary(min_size=1, max_size=MAX_ID_BYTES), min_size=1, max_size=100))
def test_as_many_ids_as_are_read_are_never_taken_for_a_bomb(many):
    ids = tuple(many)
    control = (IDontWant(ids), IHave("a topic of a name", ids[:-1] or ids), IWant(ids))
    assert decode(encode(Rpc(control=control)), LIMITS).control == control


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x05abc",  # a field longer than the rest
        b"\x0b\x0b\x0b",  # groups
        b"\x0e\x00",  # wire types that do not exist
        b"\xff" * 11,  # a number without an end
        b"\x12",  # a tag alone
        nested(0x0A, 1, b"\x12\x02\xff\xfe"),  # a topic that is not UTF-8
        nested(0x12, 1, b"\x0a\x03abc"),  # an author that is no id
        nested(0x1A, 1, nested(0x22, 1, nested(0x12, 1))),  # a peer without an id
    ],
)
def test_what_is_malformed_is_refused(data):
    with pytest.raises(ProtocolError):
        decode(data, LIMITS)


def test_ids_beyond_the_limit_or_of_a_wrong_length_are_left_out():
    many = tuple(bytes([n + 1]) for n in range(150))
    (ihave,) = decode(encode(Rpc(control=(IHave("a", many),))), LIMITS).control
    assert ihave.ids == many[:100]
    split = Rpc(control=(IWant(many[:60]), IWant(many[60:120]), IWant(many[120:])))
    assert decode(encode(split), LIMITS).control == (IWant(many[:60]), IWant(many[60:100]))
    odd = (b"", b"x" * (MAX_ID_BYTES + 1), b"good")
    (iwant,) = decode(encode(Rpc(control=(IWant(odd),))), LIMITS).control
    assert iwant.ids == (b"good",)


def test_only_so_many_peers_are_read_from_a_prune_and_no_giant_records():
    few = RpcLimits(messages=10_000, controls=10_000, ids=10_000)
    hints = (PeerHint(PEER, bytes(MAX_RECORD_BYTES + 1)), *[PeerHint(PEER)] * MAX_PX_PEERS)
    (prune,) = decode(encode(Rpc(control=(Prune("a", hints, 1),))), few).control
    assert len(prune.peers) == MAX_PX_PEERS - 1
    assert not any(each.record for each in prune.peers)
