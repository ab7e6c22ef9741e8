import functools
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.daemon.control import core
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.control.service import ControlServer
from p2pnode.errors import (
    BadRequestError,
    DaemonNotRunningError,
    DeadlineExceededError,
    DialError,
    OverloadedError,
    P2PNodeError,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    st.lists,
    max_leaves=5,
)


@given(st.text(), st.dictionaries(st.text(), json_values))
def test_requests_survive_the_wire(method, params):
    line = core.Request(method=method, params=params).encode()
    assert line.count(b"\n") == 1
    assert core.Request.decode(line) == core.Request(method=method, params=params)


@given(st.binary())
def test_any_other_line_is_a_bad_request(line):
    with pytest.raises(BadRequestError):
        core.Request.decode(line)
    with pytest.raises(BadRequestError):
        core.decode_reply(line)


def test_errors_come_back_as_their_own_class():
    with pytest.raises(DialError, match="nobody there"):
        core.decode_reply(core.encode_error(DialError("nobody there")))


@pytest.mark.parametrize("name", ["Unheard", "Final", "annotations", "ClassVar"])
def test_an_unknown_error_is_still_one_of_ours(name):
    line = core.encode_error(P2PNodeError("why")).replace(b"P2PNodeError", name.encode())
    with pytest.raises(P2PNodeError, match="why"):
        core.decode_reply(line)


async def double(params):
    return params["number"] * 2


async def refuse(params):
    raise DialError("no")


async def refuse_many(params):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, params)
        nursery.start_soon(trio.sleep_forever)


async def hang(params):
    await trio.sleep_forever()


@pytest.fixture
async def ask(tmp_path, nursery):
    # Deeper than the 108 bytes a Unix socket's address holds.
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    path = folder / "control.sock"
    methods = {
        "double": double,
        "refuse": refuse,
        "refuse_many": refuse_many,
        "hang": hang,
    }
    await nursery.start(ControlServer(path, methods, request_limit=1000).run)

    async def ask(method, **arguments):
        call = functools.partial(call_daemon, path, method, **arguments)
        return await trio.to_thread.run_sync(call)

    return ask


@pytest.mark.real
async def test_a_command_gets_its_result_or_its_error(ask):
    assert await ask("double", number=21) == 42
    with pytest.raises(DialError, match="no"):
        await ask("refuse")
    with pytest.raises(DialError, match="no"):
        await ask("refuse_many")
    with pytest.raises(BadRequestError, match="no command 'absent'"):
        await ask("absent")
    with pytest.raises(BadRequestError, match="too long"):
        await ask("double", number="x" * 2000)
    with pytest.raises(DeadlineExceededError):
        await ask("hang", timeout=0.05)
    assert await ask("double", number=1) == 2


class Command:
    """A command that notes how it ends, on a server of its own."""

    def __init__(self, path):
        self.path = path
        self.begun = trio.Event()
        self.finish = trio.Event()
        self.cancelled = trio.Event()
        self.server = trio.CancelScope()

    async def work(self, params):
        self.begun.set()
        try:
            await self.finish.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return "done"

    async def serve(self, task_status):
        with self.server:
            server = ControlServer(self.path, {"work": self.work}, request_limit=1000)
            await server.run(task_status=task_status)

    async def call(self):
        stream = await trio.open_unix_socket(str(self.path))
        await stream.send_all(core.Request(method="work").encode())
        await self.begun.wait()
        return stream


@pytest.fixture
async def command(tmp_path, nursery):
    command = Command(tmp_path / "control.sock")
    await nursery.start(command.serve)
    return command


@pytest.mark.real
async def test_a_client_that_hangs_up_takes_its_command_back(command):
    stream = await command.call()
    await stream.aclose()
    with trio.fail_after(10):
        await command.cancelled.wait()


@pytest.mark.real
async def test_a_command_that_stops_the_daemon_is_answered(command):
    stream = await command.call()
    command.finish.set()
    command.server.cancel()
    with trio.fail_after(10):
        assert core.decode_reply(await stream.receive_some()) == "done"
        assert await stream.receive_some() == b""
    await stream.aclose()


@pytest.mark.real
@pytest.mark.parametrize("sent", [b"", b'{"method"'])
async def test_a_client_that_sends_no_whole_request_is_told_and_left(sent, command, autojump_clock):
    stream = await trio.open_unix_socket(str(command.path))
    await stream.send_all(sent)
    with pytest.raises(BadRequestError, match="no control request came"):
        core.decode_reply(await stream.receive_some())
    assert await stream.receive_some() == b""
    await stream.aclose()


@pytest.mark.real
async def test_a_client_that_leaves_at_any_point_harms_nobody(command):
    whole = core.Request(method="work").encode() + b"more"
    for size in range(len(whole) + 1):
        stream = await trio.open_unix_socket(str(command.path))
        await stream.send_all(whole[:size])
        await stream.aclose()
    command.finish.set()
    stream = await command.call()
    assert core.decode_reply(await stream.receive_some()) == "done"
    await stream.aclose()


def test_without_a_daemon_the_sentence_says_how_to_start_one(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("", "absent", "file"):
        with pytest.raises(DaemonNotRunningError, match="p2pnode join"):
            call_daemon(tmp_path / folder / "control.sock", "status")


def test_a_daemon_that_hangs_does_not_hang_the_command(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(path))
        stopped.listen(0)  # which holds one that waits
        with pytest.raises(DeadlineExceededError, match="did not answer within"):
            call_daemon(path, "status", timeout=0.05)
        with pytest.raises(OverloadedError, match="too busy"):
            call_daemon(path, "status", timeout=0.05)
