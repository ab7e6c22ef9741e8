import random
import threading
from ipaddress import IPv4Address

import miniupnpc
import pytest
import trio

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError
from p2pnode.host.portmap.interfaces import Port
from p2pnode.host.portmap.route import Gateway
from p2pnode.host.portmap.upnp import UpnpMapper

pytestmark = pytest.mark.real  # the threads are; the router is not

HERE = Gateway(IPv4Address("192.168.1.1"), IPv4Address("192.168.1.10"))
TCP = Port("tcp", 4001)


class Router:
    """What miniupnpc has of a router, with faults to choose from."""

    def __init__(self):
        self.is_there = True
        self.external_ip = "52.0.1.2"
        self.mappings = {}
        self.for_ever_only = False
        self.silent = None

    def __call__(self, *, multicastif, discoverdelay):
        assert multicastif == str(HERE.own)
        assert discoverdelay == 2000
        return self

    def discover(self):
        return 1

    def selectigd(self):
        if not self.is_there:
            raise Exception("No UPnP device discovered")  # noqa: TRY002  # as the library does

    def addportmapping(self, external, kind, host, internal, *rest):
        description, remote, lease = rest
        if self.silent is not None:
            self.silent.wait()
        assert description
        assert remote == ""
        if self.for_ever_only and lease:
            raise Exception("OnlyPermanentLeasesSupported")  # noqa: TRY002  # likewise
        if self.mappings.get((external, kind), (host, internal))[:2] != (host, internal):
            raise Exception("ConflictInMappingEntry")  # noqa: TRY002  # likewise
        self.mappings[external, kind] = (host, internal, lease)

    def deleteportmapping(self, external, kind):
        if self.mappings.pop((external, kind), None) is None:
            raise Exception("NoSuchEntryInArray")  # noqa: TRY002  # likewise

    def getspecificportmapping(self, external, kind, remote):
        assert remote == ""
        entry = self.mappings.get((external, kind))
        return entry and (*entry[:2], "p2pnode", True, entry[2])

    def externalipaddress(self):
        return self.external_ip


@pytest.fixture
def router(monkeypatch):
    router = Router()
    monkeypatch.setattr(miniupnpc, "UPnP", router)
    return router


@pytest.fixture
def mapper(router):
    settings = PortmapSettings(find_timeout=4.0, request_timeout=0.3)
    return UpnpMapper(HERE, settings, random.Random(1), trio.CapacityLimiter(1))


async def test_a_mapping_is_made_looked_at_and_given_back(router, mapper):
    await mapper.find()
    mapping = await mapper.map(TCP, 4001, 3600.0)
    assert router.mappings == {(4001, "TCP"): ("192.168.1.10", 4001, 3600)}
    assert mapping.external_ip == IPv4Address("52.0.1.2")
    assert await mapper.check([mapping])
    await mapper.unmap(mapping)
    assert router.mappings == {}
    assert not await mapper.check([mapping])
    with pytest.raises(PortMappingError, match="NoSuchEntry"):
        await mapper.unmap(mapping)


async def test_where_there_is_no_router_that_is_said(router, mapper):
    router.is_there = False
    with pytest.raises(PortMappingError, match="No UPnP device"):
        await mapper.find()


async def test_a_port_that_somebody_else_has_gives_way_to_another_one(router, mapper):
    router.mappings[4001, "TCP"] = ("192.168.1.77", 4001, 0)
    await mapper.find()
    mapping = await mapper.map(TCP, 4001, 3600.0)
    assert mapping.external_port != 4001
    assert router.mappings[mapping.external_port, "TCP"][:2] == ("192.168.1.10", 4001)


async def test_who_lends_only_for_ever_is_asked_for_that_and_renewed_all_the_same(router, mapper):
    router.for_ever_only = True
    await mapper.find()
    mapping = await mapper.map(TCP, 4001, 3600.0)
    assert router.mappings[4001, "TCP"][2] == 0
    assert mapping.lifetime == 3600.0


@pytest.mark.parametrize("change", ["another's", "moved"])
async def test_a_mapping_that_is_not_ours_any_more_is_noticed(router, mapper, change):
    await mapper.find()
    mapping = await mapper.map(TCP, 4001, 3600.0)
    if change == "moved":
        router.external_ip = "52.0.9.9"
    else:
        router.mappings[4001, "TCP"] = ("192.168.1.77", 4001, 0)
    assert not await mapper.check([mapping])


async def test_a_router_that_does_not_tell_its_address_grants_nothing_of_use(router, mapper):
    router.external_ip = ""
    await mapper.find()
    with pytest.raises(PortMappingError, match="public address"):
        await mapper.map(TCP, 4001, 3600.0)
    assert router.mappings == {}


async def test_a_call_that_hangs_is_left_behind_and_its_router_not_asked_again(router, mapper):
    await mapper.find()
    router.silent = threading.Event()
    try:
        with pytest.raises(PortMappingError, match="longer than"):
            await mapper.map(TCP, 4001, 3600.0)
        with pytest.raises(PortMappingError, match="earlier request"):
            await mapper.check([])
    finally:
        router.silent.set()
