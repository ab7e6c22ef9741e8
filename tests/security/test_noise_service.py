import os

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ConnectionClosedError, HandshakeError, ProtocolError
from p2pnode.security.noise import secure_inbound, secure_outbound
from p2pnode.wire.keys import PrivateKey

DIALER = PrivateKey.from_seed(b"d" * 32)
LISTENER = PrivateKey.from_seed(b"l" * 32)
LIMIT = 65_519  # plaintext of one frame


async def secured(pair=None):
    """Return both ends' channels, and the streams beneath them."""
    near, far = pair or trio.testing.memory_stream_pair()
    sessions = {}

    async def listen():
        sessions["far"] = await secure_inbound(far, LISTENER)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        sessions["near"] = await secure_outbound(near, DIALER, expected=LISTENER.peer_id)
    return sessions["near"].channel, sessions["far"].channel, near, far


async def send_many(channel, buffers):
    channel.write(buffers)
    await channel.flush()


async def collect(channel, size):
    data = bytearray()
    while len(data) < size:
        piece = await channel.receive_some()
        assert piece
        data += piece
    assert len(data) == size
    return bytes(data)


def hold(stream):
    """Stop what is sent into a memory stream from reaching the other end."""
    stream.send_stream.send_all_hook = None


def captured(stream):
    """Take what was sent into a held stream, as an eavesdropper would."""
    try:
        return bytes(stream.send_stream.get_data_nowait())
    except trio.WouldBlock:
        return b""


def frames_of(wire):
    """Split ciphertext into frames, lengths included."""
    found = []
    while wire:
        end = 2 + int.from_bytes(wire[:2], "big")
        found.append(wire[:end])
        wire = wire[end:]
    return found


@pytest.mark.parametrize(
    "size",
    [1, 2, 8191, 8192, 8193, LIMIT - 1, LIMIT, LIMIT + 1, 16 * LIMIT, 16 * LIMIT + 1, 3 << 20],
)
async def test_a_message_of_any_size_arrives_as_it_was(size):
    near, far, *_ = await secured()
    data = os.urandom(size)
    for sender, receiver in [(near, far), (far, near)]:
        await sender.send_all(data)
        assert await collect(receiver, size) == data


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 12, 5000, 8191, 8192, 9000, LIMIT, LIMIT + 1, 70_000]),
            st.sampled_from([bytes, bytearray, memoryview]),
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_buffers_sent_together_arrive_as_one_run_of_bytes(shapes):
    buffers = [kind(bytes([number % 251]) * size) for number, (size, kind) in enumerate(shapes)]
    expected = b"".join(buffers)

    async def main():
        near, far, *_ = await secured()
        await send_many(near, buffers)
        assert await collect(far, len(expected)) == expected
        await near.aclose()
        assert await far.receive_some() == b""

    trio.run(main)


async def test_small_buffers_share_frames_and_large_ones_are_not_split_needlessly():
    near, _, stream, _ = await secured()
    hold(stream)
    await send_many(near, [b"h" * 12, b"x" * LIMIT, b"h" * 12, b"y" * 100, b"z" * 100])
    sizes = [len(frame) - 18 for frame in frames_of(captured(stream))]
    assert sizes == [12, LIMIT, 212]


async def test_an_empty_send_puts_nothing_on_the_wire():
    near, _, stream, _ = await secured()
    hold(stream)
    await near.send_all(b"")
    await send_many(near, [b"", bytearray(), memoryview(b"")])
    assert captured(stream) == b""


async def test_no_frame_exceeds_what_its_length_can_say():
    near, _, stream, _ = await secured()
    hold(stream)
    await send_many(near, [b"s" * 8191] * 40 + [b"l" * 200_000] + [b"t" * 3000] * 50)
    frames = frames_of(captured(stream))
    assert max(map(len, frames)) <= 2 + 65_535
    assert sum(len(frame) - 18 for frame in frames) == 40 * 8191 + 200_000 + 50 * 3000


async def test_the_wire_shows_no_plaintext_and_never_the_same_bytes_twice():
    near, _, stream, _ = await secured()
    hold(stream)
    for _ in range(3):
        await near.send_all(b"secret" * 10)
        await near.send_all(b"secret" * 10_000)
    wire = captured(stream)
    assert b"secret" not in wire
    frames = frames_of(wire)
    assert len(set(frames)) == len(frames)


async def test_a_reader_gets_at_most_what_it_asked_for():
    near, far, *_ = await secured()
    data = os.urandom(1000)
    await near.send_all(data)
    pieces = []
    while sum(map(len, pieces)) < len(data):
        pieces.append(await far.receive_some(7))
    assert max(map(len, pieces)) == 7
    assert b"".join(pieces) == data


async def test_asking_for_no_bytes_is_an_error_and_not_the_end():
    _, far, *_ = await secured()
    with pytest.raises(ValueError, match="max_bytes"):
        await far.receive_some(0)


async def test_an_end_between_frames_is_a_clean_end():
    near, far, *_ = await secured()
    await near.send_all(b"last words")
    await near.aclose()
    assert await far.receive_some() == b"last words"
    assert await far.receive_some() == b""
    assert await far.receive_some() == b""


@pytest.mark.parametrize("kept", [1, 2, 3, 100, -1])
async def test_an_end_inside_a_frame_is_not_a_clean_end(kept):
    near, far, near_stream, far_stream = await secured()
    hold(near_stream)
    await near.send_all(b"x" * 200)
    far_stream.receive_stream.put_data(captured(near_stream)[:kept])
    far_stream.receive_stream.put_eof()
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match="inside"):
            await far.receive_some()


@pytest.mark.parametrize("change", ["flip", "drop", "swap", "replay", "short"])
async def test_a_frame_changed_on_its_way_ends_the_channel(change):
    near, far, near_stream, far_stream = await secured()
    hold(near_stream)
    await near.send_all(b"first")
    await near.send_all(b"second")
    first, second = frames_of(captured(near_stream))
    wire = {
        "flip": first[:-1] + bytes([first[-1] ^ 1]),
        "drop": second,
        "swap": second + first,
        "replay": first + first,
        "short": b"\0\x05hello",
    }[change]
    far_stream.receive_stream.put_data(wire)
    far_stream.receive_stream.put_data(first + second)  # nothing is read on behind a broken frame
    for _ in range(2):
        with pytest.raises(ProtocolError):  # noqa: PT012  # a replayed frame is fine once
            assert await far.receive_some() == b"first"
            await far.receive_some()


@pytest.mark.parametrize("role", [secure_inbound, secure_outbound])
@pytest.mark.parametrize("size", [8193, 65_535])
async def test_an_oversized_handshake_message_is_refused_before_it_is_read(role, size):
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(size.to_bytes(2, "big"))
    with pytest.raises(HandshakeError, match="too long"):
        await role(far, LISTENER)


@pytest.mark.parametrize("role", [secure_inbound, secure_outbound])
@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x20", b"\0\x20" + b"x" * 31])
async def test_a_peer_that_hangs_up_during_the_handshake_fails_it(role, sent):
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(sent)
    await near.send_eof()
    with pytest.raises(HandshakeError, match="hung up"):
        await role(far, LISTENER)


@pytest.mark.parametrize("role", [secure_inbound, secure_outbound])
async def test_an_empty_handshake_message_is_refused(role):
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(b"\0\0")
    with pytest.raises(HandshakeError, match="short"):
        await role(far, LISTENER)


async def test_the_handshake_survives_any_chunking():
    near, far = trio.testing.memory_stream_pair()
    one, two = trio.testing.memory_stream_pair()

    async def drip(source, target):
        while data := await source.receive_some(1):
            await target.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, far, one)
        nursery.start_soon(drip, one, far)
        dialer, listener, *_ = await secured((near, two))
        await dialer.send_all(b"one by one" * 20)
        assert await collect(listener, 200) == b"one by one" * 20
        nursery.cancel_scope.cancel()


async def test_bytes_that_come_together_with_the_last_handshake_message_are_not_lost():
    near, far = trio.testing.memory_stream_pair()
    hold(near)
    data = b"and more" * 20_000
    sessions = []

    async def dial():
        channel = (await secure_outbound(near, DIALER)).channel
        await channel.send_all(b"at once")
        await channel.send_all(data)

    async def listen():
        sessions.append(await secure_inbound(far, LISTENER))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        nursery.start_soon(listen)
        for _ in range(2):  # the first message; then the third with all that is behind it
            await trio.testing.wait_all_tasks_blocked()
            trio.testing.memory_stream_pump(near.send_stream, far.receive_stream)
    assert await collect(sessions[0].channel, 7 + len(data)) == b"at once" + data


async def test_a_silent_peer_is_left_at_the_deadline(autojump_clock):
    for role in (secure_inbound, secure_outbound):
        _, far = trio.testing.memory_stream_pair()
        with trio.move_on_after(5) as scope:
            await role(far, LISTENER)
        assert scope.cancelled_caught


async def test_a_cancelled_receive_loses_nothing(autojump_clock):
    near, far, near_stream, far_stream = await secured()
    hold(near_stream)
    await near.send_all(b"x" * 5000)
    while trio.testing.memory_stream_pump(
        near_stream.send_stream, far_stream.receive_stream, max_bytes=700
    ):
        received = b""
        with trio.move_on_after(1) as scope:
            received = await far.receive_some()
    assert not scope.cancelled_caught
    assert received == b"x" * 5000


@pytest.mark.parametrize("size", [10, 3 << 20])
async def test_after_a_cancelled_send_the_channel_refuses_to_send(size, autojump_clock):
    # Otherwise the next frame would land inside the one that was cut, and look like an attack.
    pair = trio.testing.lockstep_stream_pair()
    near, _, *_ = await secured(pair)
    with trio.move_on_after(1) as scope:
        await near.send_all(bytes(size))
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(b"more")


async def test_a_write_of_the_muxers_size_is_encrypted_before_anyone_can_change_it(autojump_clock):
    # A cancelled sender of the muxer gets its buffer back while the write is still under way.
    near, far, *_ = await secured(trio.testing.lockstep_stream_pair())
    buffers = [bytearray(size) for size in [12, LIMIT] * 17]  # 1 MiB and one frame
    for buffer in buffers:
        buffer[:] = os.urandom(len(buffer))
    expected = b"".join(buffers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_many, near, buffers)
        await trio.testing.wait_all_tasks_blocked()
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))
        assert await collect(far, len(expected)) == expected


async def test_two_tasks_cannot_send_at_once(autojump_clock):
    near, far, *_ = await secured(trio.testing.lockstep_stream_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, b"first")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await near.send_all(b"second")
        assert await far.receive_some() == b"first"
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(near.send_all, b"third")
        assert await far.receive_some() == b"third"


async def test_channels_that_send_at_once_never_mix_their_bytes(autojump_clock):
    # They borrow their output buffers from one stock: a buffer given back too early, for example
    # by a cancelled send, would carry one channel's frames to another's peer.
    results = []

    async def one(number):
        near, far, *_ = await secured(trio.testing.lockstep_stream_pair())
        data = bytes([number]) * (2 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data)
            if number % 3 == 0:
                await trio.sleep(0.1)
                nursery.cancel_scope.cancel()  # in the middle of its first batch
            else:
                assert await collect(far, len(data)) == data
                results.append(number)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
    assert sorted(results) == sorted([n for n in range(12) if n % 3] * 2)


async def test_a_channel_is_a_stream_as_trio_wants_it():
    async def make():
        near, far, *_ = await secured()
        return near, far

    async def make_clogged():
        near, far, *_ = await secured(trio.testing.lockstep_stream_pair())
        return near, far

    await trio.testing.check_two_way_stream(make, make_clogged)
