from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.security.noise.core import CipherState
from p2pnode.security.noise.frames import FrameOpener, FrameSealer

KEY = bytes(range(32))
cuts = st.lists(st.integers(1, 70_000), min_size=1, max_size=8)
plaintexts = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(0, 140_000).map(bytes)), max_size=6
)


def received(opener, data, sizes):
    """Feed `data` in pieces of `sizes`; returns the plaintexts, some opened in place."""
    found = []
    in_place = cycle([False, True])
    sizes = cycle(sizes)
    while data:
        size = next(sizes)
        opener.receive_data(data[:size])
        data = data[size:]
        while (length := opener.next_size()) >= 0:
            if next(in_place):
                buffer = bytearray(length)
                opener.open_into(memoryview(buffer))
                found.append(bytes(buffer))
            else:
                found.append(bytes(opener.open()))
    return found


@given(plaintexts, cuts)
@settings(deadline=None, max_examples=50)
def test_what_is_sealed_is_opened_however_it_is_cut_on_its_way(buffers, sizes):
    sealer, opener = FrameSealer(CipherState(KEY)), FrameOpener(CipherState(KEY))
    wire = bytes(sealer.seal(buffers))
    sealer.release()
    assert b"".join(received(opener, wire, sizes)) == b"".join(buffers)
    assert not opener.is_inside_frame


@given(st.binary(max_size=3000), cuts)
def test_garbage_is_a_broken_rule_or_the_beginning_of_a_frame(garbage, sizes):
    opener = FrameOpener(CipherState(KEY))
    try:
        assert received(opener, garbage, sizes) == []
    except ProtocolError:
        return
    assert len(garbage) < 2 or int.from_bytes(garbage[:2], "big") > len(garbage) - 2


@given(st.integers(0, 199), st.integers(1, 255), cuts)
def test_a_changed_byte_is_never_taken(position, flip, sizes):
    wire = bytearray(FrameSealer(CipherState(KEY)).seal([bytes(182)]))
    wire[position] ^= flip
    try:
        assert received(FrameOpener(CipherState(KEY)), bytes(wire), sizes) == []
    except ProtocolError:
        return
    assert position < 2  # a longer frame is announced: its end may yet come
