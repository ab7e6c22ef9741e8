"""Tensor calls over the real stack: TCP, Noise and Yamux on loopback."""

import contextlib
import random

import numpy as np
import pytest
import torch
import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings, RpcSettings
from p2pnode.errors import HostLostError, TensorTooLargeError, UnknownExpertError
from p2pnode.host.node import NetworkHost
from p2pnode.mux.yamux.outbox import Outbox
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import ExpertInfo, TensorSpec
from p2pnode.rpc.server import CallHandler, CallServed, TensorServer
from p2pnode.security.noise.core import CipherState
from p2pnode.security.noise.frames import FrameOpener
from p2pnode.security.tokens import Membership
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

pytestmark = pytest.mark.real

UID = Uid("open:test", "wide.0")
NARROW = Uid("open:test", "narrow.0")
SPECS = {UID: TensorSpec("float32", (None, 65536)), NARROW: TensorSpec("float32", (None, 4))}
LIMIT = 64 * 2**20
_NETWORK = NetworkSettings()
# What is written already: a write's worth of large frames, and the one that goes beyond it.
MOST_FRAMES_AHEAD = _NETWORK.yamux_write_budget // _NETWORK.yamux_max_frame + 1


class Negate(CallHandler):
    def __init__(self):
        self.hangs = False
        self.answering = lambda: None
        self.under_way = 0
        self.changed = trio.Event()

    def info(self, uid, span=1):
        if uid not in SPECS:
            raise UnknownExpertError("not here")
        spec = (SPECS[uid],)
        return ExpertInfo(layer="negate", inputs=spec, outputs=spec, max_rows=4096, max_bytes=LIMIT)

    def check(self, uid, span=1, *, caller):
        pass

    async def forward(self, uid, inputs, **_):
        self.count(1)
        try:
            if self.hangs:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            self.answering()
            return [-each for each in inputs]
        finally:
            self.count(-1)

    async def backward(self, uid, inputs, gradients, **_):
        return await self.forward(uid, gradients)

    def count(self, change):
        self.under_way += change
        self.changed.set()
        self.changed = trio.Event()

    async def wait_for(self, under_way):
        while self.under_way != under_way:
            await self.changed.wait()


class Rig:
    def __init__(self, near, far):
        self.near, self.far = near, far
        self.handler = Negate()
        memberships = {"test": Membership.open("test")}
        settings = RpcSettings(max_call_bytes=LIMIT)
        self.server = TensorServer(far, settings, self.handler, Authority(memberships, 8))
        self.client = TensorClient(near, RpcSettings(), memberships)

    async def forward(self, x, uid=UID):
        return (await self.client.forward(self.far.peer_id, uid, [x]))[0]


@contextlib.asynccontextmanager
async def rig():
    hosts = [
        NetworkHost(
            PrivateKey.from_seed(seed * 32),
            transports=[TcpTransport()],
            settings=NetworkSettings(),
            rng=random.Random(1),
        )
        for seed in (b"n", b"f")
    ]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for host in hosts:
                await nursery.start(host.run)
            near, far = hosts
            addresses = await far.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
            near.add_addresses(far.peer_id, addresses, 3600.0)
            made = Rig(near, far)
            with far.events.subscribe(CallServed) as served:
                yield made
                while made.server.budget.calls_in_flight:
                    await served.get()
            assert made.server.budget.bytes_in_flight == 0
            nursery.cancel_scope.cancel()


async def test_small_and_large_tensors_come_back_whole():
    async with rig() as it:
        for rows in (1, 3, 100):  # up to 25 MiB each way
            x = torch.randn(rows, 65536)
            assert torch.equal(await it.forward(x), -x)


class Frames:
    """The data frames that all muxers give out, as their outbox and their bytes."""

    def __init__(self, monkeypatch):
        self.found = []
        self._more = trio.Event()
        real = Outbox._serve

        def serve(outbox, stream, output):
            before = len(output.served)
            length = real(outbox, stream, output)
            self.found += [(outbox, size) for _, size in output.served[before:] if size]
            self._more.set()
            return length

        monkeypatch.setattr(Outbox, "_serve", serve)

    def of(self, outbox, start=0):
        return [size for by, size in self.found[start:] if by is outbox]

    async def wait_for(self, outbox, size):
        while sum(self.of(outbox)) < size:
            self._more = trio.Event()
            await self._more.wait()


@pytest.mark.parametrize("way", ["request", "answer"])
async def test_a_small_call_does_not_wait_behind_a_large_one(way, monkeypatch):
    large, small = torch.zeros(LIMIT // 2**18, 65536), torch.zeros(4, 4)
    frames, marks, done = Frames(monkeypatch), {}, []

    async with rig() as it:

        async def call(x, uid):
            marks["request"] = len(frames.found)
            await it.forward(x, uid)
            done.append(len(x))

        def answering():
            marks["answer"] = len(frames.found)

        it.handler.answering = answering
        for _ in range(2):  # the first one meets what identify has to say
            await call(small, NARROW)
        outbox = frames.found[marks[way]][0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, large, UID)
            await frames.wait_for(outbox, large.nbytes // 4)
            await call(small, NARROW)
            assert done == [4, 4, 4]  # the large one is still under way
            later = frames.of(outbox, marks[way])
            before = next(at for at, size in enumerate(later) if size < 1024)
            assert before <= MOST_FRAMES_AHEAD


async def test_large_tensors_are_encrypted_and_decrypted_where_they_lie(monkeypatch):
    taken = placed = 0
    encrypt_into, open_into = CipherState.encrypt_into, FrameOpener.open_into

    def encrypt(self, plaintext, buffer):
        nonlocal taken
        if isinstance(plaintext, memoryview) and isinstance(plaintext.obj, np.ndarray):
            taken += len(plaintext)
        encrypt_into(self, plaintext, buffer)

    def decrypt(self, buffer):
        nonlocal placed
        placed += len(buffer)
        open_into(self, buffer)

    monkeypatch.setattr(CipherState, "encrypt_into", encrypt)
    monkeypatch.setattr(FrameOpener, "open_into", decrypt)
    async with rig() as it:
        x = torch.randn(100, 65536)
        assert torch.equal(await it.forward(x), -x)
    assert taken > 0.98 * 2 * x.nbytes  # there and back; ends of frames travel with headers
    assert placed > 0.9 * 2 * x.nbytes  # the rest came before it was wanted


async def test_refusals_reach_a_caller_that_is_still_sending():
    async with rig() as it:
        with pytest.raises(TensorTooLargeError):
            await it.forward(torch.zeros(300, 65536))  # 75 MiB
        with pytest.raises(UnknownExpertError):
            await it.forward(torch.zeros(200, 65536), Uid("open:test", "other.0"))
        it.server.close()
        for rows in (1, 200):
            with pytest.raises(UnknownExpertError, match="hosts no experts"):
                await it.forward(torch.zeros(rows, 65536))
        assert len(it.near.connections()) == 1


@pytest.mark.parametrize("rows", [1, 100])
async def test_cancelling_a_call_cancels_its_work(rows):
    async with rig() as it:
        it.handler.hangs = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.forward, torch.zeros(rows, 65536))
            await it.handler.wait_for(1)
            nursery.cancel_scope.cancel()
        await it.handler.wait_for(0)
        it.handler.hangs = False
        assert torch.equal(await it.forward(torch.zeros(1, 65536)), torch.zeros(1, 65536))


async def test_a_connection_lost_during_a_call_is_told_to_both_sides():
    async with rig() as it:
        it.handler.hangs = True

        async def call():
            with pytest.raises(HostLostError):
                await it.forward(torch.zeros(1, 65536))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await it.handler.wait_for(1)
            await it.far.connections()[0].aclose()
        await it.handler.wait_for(0)
