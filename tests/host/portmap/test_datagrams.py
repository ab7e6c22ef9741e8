import socket
from ipaddress import IPv4Address

import pytest
import trio

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError
from p2pnode.host.portmap.datagrams import NatPmpMapper, PcpMapper
from p2pnode.host.portmap.interfaces import Port
from p2pnode.host.portmap.route import Gateway

pytestmark = pytest.mark.real

HERE = Gateway(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"))
PUBLIC = IPv4Address("52.0.1.2")
TCP = Port("tcp", 4001)


class Router:
    """Speaks PCP or NAT-PMP on loopback, as it is told to."""

    def __init__(self, opened):
        self._opened = opened
        self.port = opened.getsockname()[1]
        self.heard = []
        self.epoch = 1000
        self.deaf = 0  # so many questions are lost
        self.before = []  # said before each answer
        self.result = 0
        self.lifetime = 600
        self.external_ip = PUBLIC

    async def run(self):
        while True:
            data, sender = await self._opened.recvfrom(2000)
            self.heard.append(data)
            if self.deaf:
                self.deaf -= 1
                continue
            for each in self.before:
                await self._opened.sendto(each, sender)
            answer = self.pcp(data) if data[0] == 2 else self.nat_pmp(data)
            await self._opened.sendto(answer, sender)

    def nat_pmp(self, data):
        head = bytes([0, data[1] | 0x80, 0, self.result]) + self.epoch.to_bytes(4, "big")
        if data[1] == 0:
            return head + self.external_ip.packed
        lifetime = min(int.from_bytes(data[8:12], "big"), self.lifetime)
        return head + data[4:8] + lifetime.to_bytes(4, "big")

    def pcp(self, data):
        lifetime = min(int.from_bytes(data[4:8], "big"), self.lifetime)
        head = bytes([2, data[1] | 0x80, 0, self.result]) + lifetime.to_bytes(4, "big")
        head += self.epoch.to_bytes(4, "big") + bytes(12)
        if data[1] == 0:
            return head
        return head + data[24:44] + bytes(10) + b"\xff\xff" + self.external_ip.packed


@pytest.fixture
async def router(nursery):
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        await opened.bind(("127.0.0.1", 0))
        router = Router(opened)
        nursery.start_soon(router.run)
        yield router


@pytest.fixture(params=["PCP", "NAT-PMP"])
def mapper(request, router):
    settings = PortmapSettings(request_timeout=2.0)
    if request.param == "PCP":
        return PcpMapper(HERE, settings, b"secret", port=router.port)
    return NatPmpMapper(HERE, settings, port=router.port)


async def test_a_mapping_is_granted_kept_and_given_back(mapper, router):
    await mapper.find()
    mapping = await mapper.map(TCP, 4002, 3600)
    assert (mapping.port, mapping.external_port, mapping.lifetime) == (TCP, 4002, 600)
    assert mapping.external_ip == PUBLIC
    assert await mapper.check([mapping])
    await mapper.unmap(mapping)
    last = router.heard[-1]
    assert last[4:8] == bytes(4) if mapper.name == "PCP" else last[8:12] == bytes(4)


async def test_a_question_that_is_lost_is_asked_again(mapper, router):
    router.deaf = 2
    await mapper.find()
    assert len(router.heard) == 3
    assert len(set(router.heard)) == 1


async def test_what_others_send_is_not_taken_for_an_answer(mapper, router):
    router.before = [b"", b"garbage", bytes(24), bytes.fromhex("02800000") + bytes(60)]
    stolen = bytes.fromhex("02810000 00000e10 00000010") + bytes(12) + b"another one!"
    router.before.append(stolen + bytes.fromhex("06000000 0fa1 0fa2") + bytes(10) + b"\xff\xff1234")
    other_port = bytes.fromhex("0082 0000 00000010 0001 0fa2 00001c20")
    router.before.append(other_port if mapper.name == "NAT-PMP" else b"")
    mapping = await mapper.map(TCP, 4003, 3600)
    assert (mapping.external_ip, mapping.external_port) == (PUBLIC, 4003)


async def test_a_refusal_is_an_error_that_says_why(mapper, router):
    router.result = 2
    with pytest.raises(PortMappingError, match="switched off"):
        await mapper.map(TCP, 4001, 3600)


async def test_a_router_that_restarted_or_moved_is_found_out(mapper, router):
    mapping = await mapper.map(TCP, 4001, 3600)
    assert await mapper.check([mapping])
    router.epoch = 3
    assert not await mapper.check([mapping])
    assert await mapper.check([mapping])
    router.external_ip = IPv4Address("52.0.9.9")
    assert not await mapper.check([mapping])


async def test_a_mapping_for_no_time_at_all_is_none(mapper, router):
    router.lifetime = 0
    with pytest.raises(PortMappingError, match="no time"):
        await mapper.map(TCP, 4001, 3600)


async def test_who_does_not_answer_is_waited_for_no_longer_than_said(router):
    router.deaf = 10**6
    mapper = NatPmpMapper(HERE, PortmapSettings(request_timeout=0.1), port=router.port)
    with trio.fail_after(30), pytest.raises(PortMappingError, match="does not answer"):
        await mapper.find()


async def test_where_nobody_listens_that_is_said_at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    mapper = NatPmpMapper(HERE, PortmapSettings(request_timeout=1000.0), port=port)
    with trio.fail_after(30), pytest.raises(PortMappingError, match="refused"):
        await mapper.find()


async def test_a_router_with_nat_pmp_alone_says_so_to_pcp(router):
    router.pcp = lambda _data: bytes.fromhex("0080 0001 00000010")
    mapper = PcpMapper(HERE, PortmapSettings(), b"secret", port=router.port)
    with pytest.raises(PortMappingError, match="NAT-PMP"):
        await mapper.find()
