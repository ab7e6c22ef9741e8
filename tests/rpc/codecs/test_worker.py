"""What is encoded beside the network, and what is not worth a thread."""

import threading

import pytest
import torch
import trio

from p2pnode.config import KIB, RpcSettings
from p2pnode.errors import NonFiniteError
from p2pnode.rpc.codecs import worker
from p2pnode.rpc.codecs.names import travelling
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.tensors import buffer_of, meta_of

SETTINGS = RpcSettings(codec_threads=2, codec_inline_bytes=4 * KIB)
SMALL = torch.ones(1024)
LARGE = torch.ones(1025)


@pytest.fixture
def workers(monkeypatch):
    """The threads in which tensors were encoded or decoded."""
    threads = []

    def watch(name):
        real = getattr(worker, name)

        def record(tensor, meta):
            threads.append(threading.current_thread())
            return real(tensor, meta)

        monkeypatch.setattr(worker, name, record)

    watch("encode")
    watch("decode")
    return threads


def metas_for(codec, *tensors):
    return [travelling(meta_of(tensor), codec) for tensor in tensors]


@pytest.mark.parametrize(
    ("tensors", "codec", "inline"),
    [
        ([SMALL], "float16", True),
        ([LARGE], "float16", False),
        ([SMALL, SMALL], "blockwise-int8", False),
        ([SMALL, torch.ones(10_000, dtype=torch.int64)], "bfloat16", True),
    ],
)
async def test_only_what_takes_long_goes_to_a_thread(workers, tensors, codec, inline):
    transcoder = Transcoder(SETTINGS)
    metas = metas_for(codec, *tensors)
    buffers = await transcoder.encode(tensors, metas)
    received = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in buffers]
    if codec == "blockwise-int8":
        found = await transcoder.decode(received, metas)
        assert all(map(torch.equal, found, tensors))
    assert {thread is threading.main_thread() for thread in workers} == {inline}


async def test_what_travels_as_it_is_is_not_worked_on(workers):
    transcoder = Transcoder(SETTINGS)
    tensors = [SMALL, LARGE]
    metas = metas_for("none", *tensors)
    buffers = await transcoder.encode(tensors, metas)
    found = [torch.frombuffer(each, dtype=torch.float32) for each in buffers]
    assert [each.data_ptr() for each in found] == [each.data_ptr() for each in tensors]
    assert list(map(id, await transcoder.decode(tensors, metas))) == list(map(id, tensors))
    assert not workers


async def test_the_network_goes_on_while_a_few_calls_are_encoded(monkeypatch):
    may_end = threading.Event()
    running = []

    def slow(tensor, _meta):
        running.append(tensor)
        assert may_end.wait(10)
        return tensor

    monkeypatch.setattr(worker, "encode", slow)
    transcoder = Transcoder(SETTINGS)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(transcoder.encode, [LARGE], metas_for("float16", LARGE))
            while len(running) < 2:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert len(running) == 2
            may_end.set()
    assert len(running) == 4


async def test_no_thread_outlives_a_cancelled_call(monkeypatch):
    entered, may_end, ended = threading.Event(), threading.Event(), []

    def slow(tensor, _meta):
        entered.set()
        assert may_end.wait(10)
        ended.append(tensor)
        return tensor

    monkeypatch.setattr(worker, "encode", slow)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Transcoder(SETTINGS).encode, [LARGE], metas_for("float16", LARGE))
            while not entered.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
            may_end.set()
        assert len(ended) == 1


async def test_what_travels_as_it_is_travels_from_its_own_memory():
    tensor = torch.zeros(3)
    (buffer,) = await Transcoder(SETTINGS).encode([tensor], metas_for("none", tensor))
    buffer[:] = buffer_of(torch.ones(3))
    assert tensor.tolist() == [1, 1, 1]
    assert (await Transcoder(SETTINGS).decode([tensor], metas_for("none", tensor)))[0] is tensor


@pytest.mark.parametrize("size", [10, 10_000])
async def test_a_refusal_comes_out_of_the_thread(size):
    tensor = torch.full((size,), float("nan"))
    with pytest.raises(NonFiniteError):
        await Transcoder(SETTINGS).encode([tensor], metas_for("blockwise-int8", tensor))
