import itertools

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import NegotiationError, ProtocolNotSupportedError
from p2pnode.mux.multistream import select_inbound, select_outbound
from p2pnode.mux.multistream.core import (
    HEADER,
    MAX_LINE,
    MAX_PROPOSALS,
    Dialer,
    LineReader,
    Listener,
    encode_line,
)
from p2pnode.wire import varint

GREETING = b"\x13/multistream/1.0.0\n"
NA = b"\x03na\n"

names = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=200
)


def feed(machine, data, sizes=(1000,)):
    """Give `machine` as much of `data` as it may take, in pieces; returns (answers, the rest)."""
    answers = b""
    for size in itertools.cycle(sizes):
        if machine.protocol is not None or not data:
            break
        piece = data[: min(size, machine.needed)]
        answers += machine.receive_data(piece)
        data = data[len(piece) :]
    return answers, data


chunkings = st.lists(st.integers(1, 40), min_size=1)


def test_the_wire_is_pinned():
    assert encode_line(HEADER) == GREETING
    assert encode_line("na") == NA
    proposal = b"\x0d/yamux/1.0.0\n"
    assert Dialer(["/yamux/1.0.0"]).first_message() == GREETING + proposal
    listener = Listener({"/yamux/1.0.0"}.__contains__)
    assert feed(listener, GREETING + proposal) == (GREETING + proposal, b"")


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * MAX_LINE])
def test_what_cannot_be_a_name_is_not_sent(text):
    with pytest.raises(NegotiationError, match="cannot name"):
        encode_line(text)


def test_the_longest_line_passes():
    reader = LineReader()
    text = "x" * (MAX_LINE - 1)
    data = encode_line(text)
    for byte in data[:-1]:
        assert reader.receive_data(bytes([byte])) is None
    assert reader.receive_data(data[-1:]) == text


@given(st.lists(names, min_size=1, max_size=5), chunkings)
def test_lines_are_read_back_in_any_chunking_and_never_beyond_their_end(texts, sizes):
    reader = LineReader()
    data = b"".join(map(encode_line, texts))
    found = []
    for size in itertools.cycle(sizes):
        if not data:
            break
        piece = data[: min(size, reader.needed)]
        data = data[len(piece) :]
        line = reader.receive_data(piece)
        if line is not None:
            found.append(line)
            assert data == b"".join(map(encode_line, texts[len(found) :]))
    assert found == texts


@given(
    st.lists(names, min_size=1, max_size=6, unique=True),
    st.sets(st.integers(0, 5)),
    chunkings,
    chunkings,
    st.binary(max_size=30),
)
def test_the_first_proposal_that_is_supported_wins_and_what_follows_stays_unread(
    wanted, known, dial_sizes, listen_sizes, follows
):
    if "na" in wanted:
        wanted.remove("na")
    supported = {wanted[index] for index in known if index < len(wanted)}
    if not wanted:
        return
    dialer, listener = Dialer(wanted), Listener(supported.__contains__)
    to_listener, to_dialer = dialer.first_message(), b""
    expected = next((name for name in wanted if name in supported), None)
    try:
        while dialer.protocol is None:
            answers, to_listener = feed(listener, to_listener, listen_sizes)
            to_dialer += answers
            if listener.protocol is not None:
                to_dialer += follows
            answers, to_dialer = feed(dialer, to_dialer, dial_sizes)
            to_listener += answers
    except ProtocolNotSupportedError:
        assert expected is None
        return
    assert dialer.protocol == listener.protocol == expected
    assert to_dialer == follows
    assert to_listener == b""


@given(st.binary(max_size=2000), chunkings, st.booleans(), st.booleans())
def test_garbage_is_an_error_or_waits_for_more(garbage, sizes, greeted, dials):
    machine = Dialer(["/a", "/b"]) if dials else Listener({"/x"}.__contains__)
    if dials:
        machine.first_message()
    try:
        feed(machine, GREETING * greeted + garbage, sizes)
    except NegotiationError:
        return
    assert 1 <= machine.needed <= MAX_LINE


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x00",  # an empty message has no newline
        b"\x81\x08",  # 1025 bytes
        b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xff" * 10,  # a length that does not end
        b"\x81\x00",  # not in minimal form
        b"\x03abc",  # no newline
        b"\x03\xff\xfe\n",  # not text
        b"\x05/no/\n",  # not the header
        b"\x03na\n",
        b"GET / HTTP/1.1\r\n" + b" " * 100,
        b"\x16\x03\x01\x02\x00" + bytes(100),  # TLS
    ],
)
@pytest.mark.parametrize("dials", [True, False])
def test_a_peer_that_does_not_speak_multistream_is_refused(hostile, dials):
    machine = Dialer(["/a"]) if dials else Listener(lambda _: True)
    if dials:
        machine.first_message()
    with pytest.raises(NegotiationError):
        feed(machine, hostile)


@pytest.mark.parametrize(
    "answer", [b"\x03/b\n", b"\x01\n", b"\x05/a \n\n", b"\x04/a\n\n", GREETING]
)
def test_an_answer_that_is_neither_the_proposal_nor_na_is_refused(answer):
    dialer = Dialer(["/a"])
    dialer.first_message()
    with pytest.raises(NegotiationError) as caught:
        feed(dialer, GREETING + answer)
    assert not isinstance(caught.value, ProtocolNotSupportedError)


def test_na_leads_to_the_next_proposal_and_the_last_na_to_an_error():
    dialer = Dialer(["/a", "/b"])
    assert dialer.first_message() == GREETING + b"\x03/a\n"
    assert feed(dialer, GREETING + NA) == (b"\x03/b\n", b"")
    with pytest.raises(ProtocolNotSupportedError, match="/a, /b"):
        feed(dialer, NA)


@pytest.mark.parametrize("line", [b"\x03ls\n", b"\x03na\n", b"\x01\n", b"\x04a\nb\n", GREETING])
def test_a_listener_answers_na_to_what_it_does_not_know(line):
    # `ls` among them: go-libp2p dropped it as well, and what we serve is told by identify.
    listener = Listener({"/a"}.__contains__)
    assert feed(listener, GREETING + line) == (GREETING + NA, b"")
    assert feed(listener, b"\x03/a\n") == (b"\x03/a\n", b"")
    assert listener.protocol == "/a"


def test_a_listener_greets_before_the_first_proposal():
    # py-libp2p does not propose before it has seen the header.
    listener = Listener({"/a"}.__contains__)
    assert feed(listener, GREETING) == (GREETING, b"")


def test_a_dialer_that_proposes_without_end_is_refused():
    listener = Listener(lambda _: False)
    feed(listener, GREETING)
    for _ in range(MAX_PROPOSALS):
        assert feed(listener, b"\x03/a\n") == (NA, b"")
    with pytest.raises(NegotiationError, match="more than"):
        feed(listener, b"\x03/a\n")


def test_there_must_be_something_to_propose():
    with pytest.raises(NegotiationError, match="no protocol"):
        Dialer([])


def test_what_follows_the_negotiation_is_given_back():
    dialer, listener = Dialer(["/a"]), Listener({"/a"}.__contains__)
    proposal = dialer.first_message()
    answer = listener.receive_data(proposal + b"request")
    answer += listener.receive_data(b"")
    assert (listener.protocol, listener.rest) == ("/a", b"request")
    dialer.receive_data(answer + b"response")
    assert (dialer.protocol, dialer.rest) == ("/a", b"response")


def test_a_refusal_is_given_out_before_what_follows_is_looked_at():
    # Data sent in the hope of a protocol we do not speak is no line, but the refusal must be told.
    listener = Listener({"/b"}.__contains__)
    data = Dialer(["/a"]).first_message() + b"\xff" * 100
    assert [listener.receive_data(data), listener.receive_data(b"")] == [GREETING, NA]
    with pytest.raises(NegotiationError):
        listener.receive_data(b"")


async def test_both_ends_agree_and_read_no_byte_of_what_follows():
    near, far = trio.testing.memory_stream_pair()
    agreed = []

    async def listen():
        agreed.append(await select_inbound(far, {"/b"}.__contains__))
        await far.send_all(b"from the listener")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        agreed.append(await select_outbound(near, ["/a", "/b"]))
        await near.send_all(b"from the dialer")
    assert agreed == ["/b", "/b"]
    assert await near.receive_some() == b"from the listener"
    assert await far.receive_some() == b"from the dialer"


async def test_data_sent_in_the_hope_of_a_protocol_stays_for_it():
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(Dialer(["/a"]).first_message() + b"request")
    assert await select_inbound(far, {"/a"}.__contains__) == "/a"
    assert await far.receive_some() == b"request"


@pytest.mark.parametrize("sent", [b"", GREETING[:5], GREETING, GREETING + b"\x03/"])
async def test_a_peer_that_hangs_up_fails_the_negotiation(sent):
    for select in (
        lambda stream: select_outbound(stream, ["/a"]),
        lambda stream: select_inbound(stream, {"/a"}.__contains__),
    ):
        near, far = trio.testing.memory_stream_pair()
        await near.send_all(sent)
        await near.send_eof()
        with pytest.raises(NegotiationError, match="hung up"):
            await select(far)


async def test_a_peer_that_never_ends_a_line_is_cut_off_by_its_length_not_by_memory():
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(varint.encode(1 << 40) + b"x" * 100_000)
    with pytest.raises(NegotiationError, match="not accepted"):
        await select_inbound(far, lambda _: True)
    assert len(await far.receive_some()) == 100_000  # none of it was read


async def test_a_silent_peer_is_left_at_the_deadline(autojump_clock):
    for sent in (b"", GREETING + b"\x7f" + b"x" * 10):
        near, far = trio.testing.memory_stream_pair()
        await near.send_all(sent)
        with trio.move_on_after(3) as scope:
            await select_inbound(far, lambda _: True)
        assert scope.cancelled_caught
