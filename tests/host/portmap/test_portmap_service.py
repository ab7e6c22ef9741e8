import itertools
from ipaddress import IPv4Address

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError
from p2pnode.events import EventBus
from p2pnode.host.interfaces import LocalPeerChanged
from p2pnode.host.portmap import Mapping, Port, PortMappingFailed, PortMappingService, PortsMapped
from p2pnode.host.portmap.route import Gateway
from p2pnode.wire.keys import PrivateKey

PUBLIC = IPv4Address("52.0.1.2")
HOME = Gateway(IPv4Address("192.168.1.1"), IPv4Address("192.168.1.10"))
CAFE = Gateway(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.7"))
TCP = Port("tcp", 4001)


class FakeHost:
    """As much of a host as the service looks at."""

    def __init__(self, *listening):
        self.events = EventBus()
        self.key = PrivateKey.generate()
        self.mapped = []
        self.listen(*listening)

    def listen(self, *addresses):
        self.listening = [Multiaddr(each) for each in addresses]
        self.events.emit(LocalPeerChanged())

    def set_mapped(self, addresses):
        self.mapped = [str(each) for each in addresses]
        self.events.emit(LocalPeerChanged())


class FakeMapper:
    """A router that can be asked, and told how to behave."""

    def __init__(self, name="fake", *, find_after=0.0, knows_us=True):
        self.name = name
        self.find_after = find_after
        self.knows_us = knows_us
        self.external_ip = PUBLIC
        self.external_port = None
        self.lifetime = 3600.0
        self.refuses = False
        self.silent = False
        self.mappings = {}
        self.asked = []

    async def find(self):
        await trio.sleep(self.find_after)
        if not self.knows_us:
            raise PortMappingError("nobody there")

    async def map(self, port, external_port, lifetime):
        self.asked.append((trio.current_time(), port, external_port))
        await self._answer()
        if self.refuses:
            raise PortMappingError("no room")
        mapping = Mapping(
            port=port,
            external_ip=self.external_ip,
            external_port=self.external_port or external_port,
            lifetime=min(lifetime, self.lifetime),
        )
        self.mappings[port] = mapping
        return mapping

    async def unmap(self, mapping):
        await self._answer()
        self.mappings.pop(mapping.port, None)

    async def check(self, held):
        await self._answer()
        return all(self.mappings.get(each.port) == each for each in held)

    async def _answer(self):
        await trio.sleep(0.01)
        if self.silent:
            await trio.sleep(3)
            raise PortMappingError("silent")


class Place:
    def __init__(self, host, *mappers, gateway=HOME, **settings):
        self.gateway = gateway
        self.told = []
        for kind in (PortsMapped, PortMappingFailed):
            host.events.on(kind, self.told.append)
        self.service = PortMappingService(
            host,
            PortmapSettings(**settings),
            find=lambda: self.gateway,
            ways=lambda _gateway: mappers,
            announcements=self.announce,
        )

    async def announce(self, gateway, heard):
        self.heard = heard
        await trio.sleep_forever()


@pytest.fixture
def run(nursery):
    async def start(place):
        scope = trio.CancelScope()

        async def live(task_status):
            with scope:
                await place.service.run(task_status=task_status)

        await nursery.start(live)
        return scope

    return start


LISTENING = (
    "/ip4/192.168.1.10/tcp/4001",
    "/ip4/192.168.1.10/tcp/4001/ws",
    "/ip4/127.0.0.1/tcp/4001",
)


async def test_each_listen_address_becomes_one_at_the_router_and_is_taken_back_at_the_end(
    autojump_clock, run
):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    mapper.external_port = 1234
    place = Place(host, mapper)
    scope = await run(place)
    await trio.sleep(1)
    assert host.mapped == ["/ip4/52.0.1.2/tcp/1234", "/ip4/52.0.1.2/tcp/1234/ws"]
    assert place.service.protocol == "fake"
    assert [each.external_port for each in place.service.mappings] == [1234]
    scope.cancel()
    await trio.sleep(1)
    assert mapper.mappings == {}
    assert host.mapped == []
    assert [type(each) for each in place.told] == [PortsMapped]


@pytest.mark.parametrize(
    ("gateway", "listening"),
    [
        (None, LISTENING),
        (HOME, ["/ip4/127.0.0.1/tcp/4001"]),
        (HOME, []),
        (Gateway(IPv4Address("52.0.1.1"), IPv4Address("52.0.1.2")), ["/ip4/52.0.1.2/tcp/4001"]),
    ],
)
async def test_who_has_nothing_to_map_asks_nobody(autojump_clock, run, gateway, listening):
    host, mapper = FakeHost(*listening), FakeMapper()
    place = Place(host, mapper, gateway=gateway)
    await run(place)
    await trio.sleep(1000)
    assert mapper.asked == []
    assert place.told == []


async def test_a_port_listened_on_later_is_mapped_then_and_given_back_when_it_is_closed(
    autojump_clock, run
):
    host, mapper = FakeHost(), FakeMapper()
    await run(Place(host, mapper))
    await trio.sleep(1)
    host.listen(*LISTENING, "/ip4/192.168.1.10/udp/4001/quic-v1")
    await trio.sleep(1)
    assert set(mapper.mappings) == {TCP, Port("udp", 4001)}
    assert "/ip4/52.0.1.2/udp/4001/quic-v1" in host.mapped
    host.listen("/ip4/192.168.1.10/udp/4001/quic-v1")
    await trio.sleep(1)
    assert set(mapper.mappings) == {Port("udp", 4001)}
    assert host.mapped == ["/ip4/52.0.1.2/udp/4001/quic-v1"]


async def test_a_mapping_is_renewed_early_and_never_lapses(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    mapper.lifetime = 600.0
    await run(Place(host, mapper))
    await trio.sleep(3600)
    times = [at for at, *_ in mapper.asked]
    assert all(300 <= later - at <= 376 for at, later in itertools.pairwise(times))
    assert len(times) >= 9


async def test_the_best_way_that_works_is_taken_without_waiting_for_worse_ones(autojump_clock, run):
    best, worse = FakeMapper("best", find_after=1.0), FakeMapper("worse")
    slow = FakeMapper("slow", find_after=3.0)
    place = Place(FakeHost(*LISTENING), best, worse, slow)
    await run(place)
    await trio.sleep(1.5)
    assert place.service.protocol == "best"
    assert worse.asked == slow.asked == []


async def test_a_worse_way_is_taken_when_the_better_ones_are_unknown_or_silent(autojump_clock, run):
    absent, silent = FakeMapper(knows_us=False), FakeMapper(find_after=100)
    last = FakeMapper("last", find_after=1.0)
    place = Place(FakeHost(*LISTENING), absent, last, silent)
    await run(place)
    await trio.sleep(1.5)
    assert place.service.protocol == "last"
    place = Place(FakeHost(*LISTENING), silent, last)
    await run(place)
    await trio.sleep(4.5)
    assert place.service.protocol == "last"


async def test_where_no_way_works_that_is_said_once_and_tried_again_ever_more_rarely(
    autojump_clock, run
):
    mapper = FakeMapper("one", knows_us=False)
    finds = []
    place = Place(FakeHost(*LISTENING), mapper, FakeMapper("two", find_after=100))
    original = mapper.find

    async def find():
        finds.append(trio.current_time())
        await original()

    mapper.find = find
    await run(place)
    await trio.sleep(1000)
    assert [each.reason for each in place.told] == ["one: nobody there; two: no answer"]
    pauses = [later - at for at, later in itertools.pairwise(finds)]
    assert pauses == pytest.approx([64, 124, 244, 484])
    mapper.knows_us = True
    await trio.sleep(2000)
    assert place.service.protocol == "one"
    assert place.service.failure == ""


async def test_a_router_that_forgot_is_asked_for_the_same_again_at_its_next_check(
    autojump_clock, run
):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    mapper.external_port = 1234
    await run(Place(host, mapper, check_interval=60.0))
    await trio.sleep(10)
    mapper.mappings.clear()
    mapper.external_port = None
    await trio.sleep(60)
    assert mapper.mappings[TCP].external_port == 1234
    assert [external for _, _, external in mapper.asked] == [4001, 1234]


async def test_a_router_that_speaks_unasked_is_looked_at_at_once(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper, check_interval=3600.0)
    await run(place)
    await trio.sleep(10)
    mapper.mappings.clear()
    place.heard()
    await trio.sleep(1)
    assert TCP in mapper.mappings


async def test_a_router_that_moved_is_told_of_at_its_new_address(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(10)
    mapper.external_ip = IPv4Address("52.0.9.2")
    mapper.mappings.clear()
    await trio.sleep(60)
    assert host.mapped[0] == "/ip4/52.0.9.2/tcp/4001"
    assert [type(each) for each in place.told] == [PortsMapped, PortsMapped]


async def test_a_machine_that_roams_asks_the_router_it_finds_there(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(10)
    place.gateway = CAFE
    host.listen("/ip4/10.0.0.7/tcp/4001")
    await trio.sleep(10)
    assert [at for at, *_ in mapper.asked][1] == pytest.approx(10, abs=1)
    assert host.mapped == ["/ip4/52.0.1.2/tcp/4001"]
    assert TCP in mapper.mappings  # the old router was not there any more to give it back to


async def test_a_silent_router_is_looked_for_anew_and_its_addresses_told_no_more(
    autojump_clock, run
):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(10)
    mapper.silent = True
    mapper.knows_us = False
    await trio.sleep(250)
    assert place.service.protocol is None
    assert host.mapped == []
    assert [type(each) for each in place.told] == [
        PortsMapped,
        PortMappingFailed,
        PortMappingFailed,
    ]


async def test_a_refusal_is_told_and_asked_again_later(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    mapper.refuses = True
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(100)
    assert place.service.failure == "fake: no room"
    assert [round(at) for at, *_ in mapper.asked] == [0, 60]
    mapper.refuses = False
    await trio.sleep(200)
    assert host.mapped[0] == "/ip4/52.0.1.2/tcp/4001"
    assert place.service.failure == ""


async def test_where_one_way_gets_a_refusal_the_next_one_is_tried(autojump_clock, run):
    host, refusing, other = FakeHost(*LISTENING), FakeMapper("one"), FakeMapper("two")
    refusing.refuses = True
    place = Place(host, refusing, other)
    await run(place)
    await trio.sleep(10)
    assert place.service.protocol == "two"
    assert host.mapped[0] == "/ip4/52.0.1.2/tcp/4001"
    assert place.service.failure == ""


async def test_a_port_that_is_refused_beside_one_that_is_granted_is_told_and_asked_again(
    autojump_clock, run
):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(10)
    mapper.refuses = True
    host.listen(*LISTENING, "/ip4/192.168.1.10/udp/4001/quic-v1")
    await trio.sleep(10)
    assert place.service.failure == "no room"
    assert host.mapped[0] == "/ip4/52.0.1.2/tcp/4001"
    mapper.refuses = False
    await trio.sleep(100)
    assert "/ip4/52.0.1.2/udp/4001/quic-v1" in host.mapped
    assert place.service.failure == ""


async def test_an_address_behind_another_translator_is_explained_and_not_told(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    mapper.external_ip = IPv4Address("100.64.3.4")
    place = Place(host, mapper)
    await run(place)
    await trio.sleep(10)
    assert host.mapped == []
    assert "100.64.3.4 is not public" in place.service.failure


async def test_giving_back_to_a_silent_router_takes_no_longer_than_it_may(autojump_clock, run):
    host, mapper = FakeHost(*LISTENING), FakeMapper()
    place = Place(host, mapper, close_timeout=2.0)
    scope = await run(place)
    await trio.sleep(10)
    mapper.silent = True
    scope.cancel()
    await trio.sleep(2.1)
    assert scope.cancelled_caught
    assert place.service.protocol is None
