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


async def hang(params):
    await trio.sleep_forever()


@pytest.fixture
async def ask(tmp_path, nursery):
    # Deeper than the 108 bytes a Unix socket's address holds.
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    path = folder / "control.sock"
    methods = {"double": double, "refuse": refuse, "hang": hang}
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
    with pytest.raises(BadRequestError, match="no command 'absent'"):
        await ask("absent")
    with pytest.raises(BadRequestError, match="too long"):
        await ask("double", number="x" * 2000)
    with pytest.raises(DeadlineExceededError):
        await ask("hang", timeout=0.05)
    assert await ask("double", number=1) == 2


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
