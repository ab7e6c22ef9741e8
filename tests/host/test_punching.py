import pytest
import trio

from p2pnode.config import DcutrSettings
from p2pnode.errors import DialError
from p2pnode.host.punching import Punch
from p2pnode.transport.base import Transport
from p2pnode.wire.addresses import parse_address

TCP = parse_address("/ip4/8.0.0.1/tcp/1")
QUIC = parse_address("/ip4/8.0.0.1/udp/1/quic-v1")
WEBSOCKET = parse_address("/ip4/8.0.0.1/tcp/1/ws")
SETTINGS = DcutrSettings(attempt_pause=0.25, tcp_head_start=0.5)


class Deaf(Transport):
    """Refuses every punch, and notes when it was asked for one."""

    def __init__(self):
        self.asked = {}

    def can_dial(self, address):
        return self.can_punch(address)

    def can_punch(self, address):
        return address in {TCP, QUIC}

    async def dial(self, address, **_):
        raise NotImplementedError

    async def listen(self, address):
        raise NotImplementedError

    async def punch(self, address, *, is_client):
        self.asked.setdefault(address, []).append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise DialError("refused")


@pytest.fixture
def deaf():
    return Deaf()


async def run(deaf, addresses, seconds):
    """Punch for so long; returns the reasons, and for each address when it was dialled."""
    punch = Punch([deaf], None, SETTINGS, is_client=True)
    began = trio.current_time()
    with trio.move_on_after(seconds):
        assert await punch.run(addresses) is None
    asked = {each: [at - began for at in times] for each, times in deaf.asked.items()}
    return punch.reasons, asked


async def test_an_address_that_refuses_is_dialled_again_and_again(deaf, autojump_clock):
    reasons, asked = await run(deaf, [TCP], 0.9)
    assert asked[TCP] == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert reasons == {TCP: "refused"}


async def test_tcp_has_a_head_start_over_udp(deaf, autojump_clock):
    _, asked = await run(deaf, [QUIC, TCP], 0.9)
    assert asked[TCP][0] == 0.0
    assert asked[QUIC] == pytest.approx([0.5, 0.75])


async def test_udp_alone_waits_for_nothing(deaf, autojump_clock):
    _, asked = await run(deaf, [QUIC], 0.1)
    assert asked[QUIC][0] == 0.0


async def test_an_address_that_no_transport_punches_is_given_up_at_once(deaf, autojump_clock):
    reasons, asked = await run(deaf, [WEBSOCKET], 10.0)
    assert asked == {}
    assert "no transport" in reasons[WEBSOCKET]
    assert trio.current_time() < 1.0
