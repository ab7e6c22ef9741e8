import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.security.noise.core import CipherState
from p2pnode.security.noise.frames import SPARE_BYTES, FrameOpener, FrameSealer

LIMIT = 65_519  # plaintext of one frame


def ends():
    return FrameSealer(CipherState(bytes(32))), FrameOpener(CipherState(bytes(32)))


def opened(opener, *, into):
    """Open all frames that have come whole; `into` says which ones go into a buffer of ours."""
    plaintexts = []
    while (size := opener.next_size()) >= 0:
        if next(into):
            buffer = bytearray(size)
            opener.open_into(memoryview(buffer))
            plaintexts.append(bytes(buffer))
        else:
            plaintexts.append(opener.open())
            assert len(plaintexts[-1]) == size
    return b"".join(plaintexts)


def forever(choices):
    while True:
        yield from choices


@given(
    writes=st.lists(
        st.lists(st.sampled_from([0, 1, 12, 17, 8191, 8192, LIMIT, LIMIT + 1, 200_000])),
        max_size=5,
    ),
    cuts=st.lists(st.sampled_from([1, 2, 3, 17, 18, 1000, 65_537, 300_000]), min_size=1),
    into=st.lists(st.booleans(), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_frames_may_be_cut_anywhere_and_opened_in_either_way(writes, cuts, into):
    sealer, opener = ends()
    sent, wire, number = b"", b"", 0
    for sizes in writes:
        buffers = []
        for size in sizes:
            number += 1
            buffers.append(bytes([number % 251]) * size)
        sent += b"".join(buffers)
        wire += bytes(sealer.seal(buffers))
        sealer.release()
    received = b""
    choices, lengths = forever(into), forever(cuts)
    while wire:
        length = next(lengths) if len(wire) < 100_000 else max(next(lengths), 20_000)
        piece, wire = wire[:length], wire[length:]
        opener.receive_data(piece)
        received += opened(opener, into=choices)
    assert received == sent
    assert not opener.is_inside_frame


@pytest.mark.parametrize("into", [False, True])
def test_a_changed_frame_is_not_opened(into):
    sealer, opener = ends()
    wire = bytearray(sealer.seal([b"payload"]))
    wire[5] ^= 1
    opener.receive_data(wire)
    with pytest.raises(ProtocolError, match="changed or replayed"):
        opened(opener, into=forever([into]))


def test_what_is_forgotten_does_not_come_back():
    sealer, opener = ends()
    opener.receive_data(bytes(sealer.seal([b"payload"])) + b"\x00")
    opener.forget()
    assert opener.next_size() == -1
    assert not opener.is_inside_frame


def test_an_output_buffer_is_used_again_and_an_oversized_one_is_not_kept():
    sealer, other = ends()[0], ends()[0]
    first = sealer.seal([bytes(LIMIT)]).obj
    sealer.release()
    assert other.seal([bytes(LIMIT)]).obj is first
    assert sealer.seal([bytes(LIMIT)]).obj is not first
    sealer.release()
    other.release()
    large = sealer.seal([bytes(SPARE_BYTES)]).obj
    sealer.release()
    assert sealer.seal([bytes(LIMIT)]).obj is not large
    sealer.release()
