"""This process's side of a benchmark between two: the other one, started and ended."""

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import trio

from cli.bench import far_end
from p2pnode.config import NetworkSettings
from p2pnode.errors import LocalError
from p2pnode.wire.addresses import parse_address, peer_address

E = TypeVar("E", bound="End")


class End:
    """Another process, and this one's ways to it.

    Attributes:
        facts: what it said when it was ready.
        peer_id: of its host.
        address: of its host, without the id.
    """

    def __init__(self, facts: dict[str, Any], control: trio.SocketStream) -> None:
        self.facts = facts
        self._control = control
        self.peer_id, self.address = peer_address(facts["address"])

    async def usage(self) -> dict[str, float]:
        """Ask for its processor seconds and resident bytes."""
        return await self._ask(far_end.ASK_ALL)

    async def processor_seconds(self) -> float:
        """Ask how long it has computed so far, which takes next to no time."""
        return (await self._ask(far_end.ASK_TIME))["cpu"]

    async def _ask(self, question: bytes) -> dict[str, float]:
        await self._control.send_all(question)
        line = b""
        while not line.endswith(b"\n"):
            data = await self._control.receive_some()
            if not data:
                raise LocalError("the other process of the benchmark ended")
            line += data
        found: dict[str, float] = json.loads(line)
        return found


class FarEnd(End):
    """The process that serves all that `bench stream` measures."""

    def __init__(self, facts: dict[str, Any], control: trio.SocketStream) -> None:
        super().__init__(facts, control)
        self.quic_address = parse_address(facts["quic"])

    async def connect(self, name: str) -> trio.SocketStream:
        """Connect to one of its bare services."""
        return await trio.open_tcp_stream(far_end.HOST, self.facts[name])


@contextlib.asynccontextmanager
async def run_far_end(max_connections: int) -> AsyncIterator[FarEnd]:
    """Run the process of `bench stream` for the time of a block.

    Args:
        max_connections: that it takes.

    Raises:
        LocalError: it did not start.
    """
    async with run_end(FarEnd, "cli.bench.far_end", str(max_connections)) as there:
        yield there


@contextlib.asynccontextmanager
async def run_end(kind: type[E], module: str, *arguments: str) -> AsyncIterator[E]:
    """Run another process for the time of a block.

    Args:
        kind: what to make of it.
        module: what it runs; it says on one line of JSON when it is ready, and where its host and
            its `control` port are.
        arguments: of the module.

    Raises:
        LocalError: it did not start.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = b""
        async with process.stdout as output:
            with trio.move_on_after(far_end.START_TIMEOUT):
                while not line.endswith(b"\n") and (data := await output.receive_some()):
                    line += data
        if not line.endswith(b"\n"):
            raise LocalError("the other process of the benchmark did not start")
        facts = json.loads(line)
        async with await trio.open_tcp_stream(far_end.HOST, facts["control"]) as control:
            yield kind(facts, control)
    finally:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(NetworkSettings().close_timeout * 2):
                await process.wait()
            process.kill()
            await process.wait()
