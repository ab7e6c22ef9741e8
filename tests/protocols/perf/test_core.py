import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError, ResourceLimitError
from p2pnode.protocols.perf.core import MAX_DOWNLOAD, Answer, PerfResult, Run, encode_request


def pieces_of(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.integers(0, 2**20), st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=8))
def test_a_run_knows_what_is_wanted_however_it_arrives(download, upload, cuts):
    run = Run(2**20)
    for piece in pieces_of(encode_request(download) + upload, cuts):
        run.receive_data(piece)
    assert run.receive_end() == download


def test_a_request_is_eight_bytes_big_endian():
    assert encode_request(0) == bytes(8)
    assert encode_request(258) == bytes.fromhex("0000000000000102")
    assert encode_request(MAX_DOWNLOAD) == b"\xff" * 8
    for wrong in (-1, MAX_DOWNLOAD + 1):
        with pytest.raises(ValueError, match="0 to"):
            encode_request(wrong)


@given(st.integers(0, 7))
def test_a_stream_that_ends_inside_the_request_breaks_the_rules(size):
    run = Run(10)
    run.receive_data(bytes(size))
    with pytest.raises(ProtocolError, match="ended before"):
        run.receive_end()


def test_more_than_the_limit_is_neither_sent_nor_received():
    Run(10).receive_data(encode_request(10) + bytes(10))
    with pytest.raises(ResourceLimitError, match="asks for 11 bytes"):
        Run(10).receive_data(encode_request(11))
    run = Run(10)
    run.receive_data(encode_request(0) + bytes(6))
    with pytest.raises(ResourceLimitError, match="sends 11 bytes"):
        run.receive_data(bytes(5))


@given(st.binary(max_size=100), st.integers(0, 100), st.lists(st.integers(0, 200), max_size=5))
def test_an_answer_is_as_long_as_was_asked_for(data, wanted, cuts):
    answer = Answer(wanted)
    try:
        for piece in pieces_of(data, cuts):
            answer.receive_data(piece)
        answer.receive_end()
    except ProtocolError:
        assert len(data) != wanted
    else:
        assert len(data) == wanted


def test_rates_are_of_what_was_moved():
    result = PerfResult(upload=100, download=0, upload_seconds=0.5, download_seconds=0.0)
    assert (result.upload_rate, result.download_rate) == (200.0, None)
