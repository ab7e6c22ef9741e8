import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.swarm.averaging.terms import MAX_BYTES, MAX_NUMBER, Terms, UploadMeter, rounded

numbers = st.integers(0, MAX_NUMBER)


@given(numbers, numbers)
def test_terms_come_back_as_they_were(training, upload):
    terms = Terms(training=training, upload=upload)
    assert len(terms.encode()) <= MAX_BYTES
    assert Terms.decode(terms.encode()) == terms


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data):
    try:
        terms = Terms.decode(data)
    except ProtocolError:
        return
    assert 0 <= terms.training <= MAX_NUMBER
    assert 0 <= terms.upload <= MAX_NUMBER


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not msgpack"),
        (b"\x80", "a training and an upload"),
        (b"\x91\x01", "a training and an upload"),
        (b"\x92\x01\xff", "out of range"),
        (b"\x92\x01\xc3", "out of range"),
        (bytes(MAX_BYTES + 1), "too large"),
    ],
)
def test_what_are_no_terms_is_refused(data, reason):
    with pytest.raises(ProtocolError, match=reason):
        Terms.decode(data)


def test_a_slow_receiver_does_not_make_a_sender_look_slow():
    meter = UploadMeter(10.0, 1000)
    meter.receive_sent(900, 10.5)
    assert not meter.rate  # it may still lie in buffers
    meter.receive_sent(900, 11.0)
    assert meter.rate == 1800
    meter.receive_sent(900, 20.0)
    assert meter.rate == 1800


def test_what_goes_at_once_measures_nothing():
    meter = UploadMeter(10.0, 1000)
    meter.receive_sent(2000, 10.0)
    assert not meter.rate


@pytest.mark.parametrize(
    ("rate", "found"), [(0.0, 0), (0.9, 0), (1.0, 1), (1023.0, 512), (1024.0, 1024), (1e30, 2**53)]
)
def test_rates_are_rounded_to_powers_of_two(rate, found):
    assert rounded(rate) == found
