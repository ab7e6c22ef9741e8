"""What nodes find out about themselves, behind every kind of router."""

import pytest
import trio

from p2pnode.config import ReachabilitySettings
from p2pnode.host.reachability.verdicts import Result
from p2pnode.protocols.autonat import server
from p2pnode.protocols.autonat.messages import DIAL_REQUEST, DialStatus, V1Answer, V1Status
from p2pnode.protocols.autonat.service import ReachabilityProbed
from p2pnode.testing.network import Nat
from p2pnode.wire.addresses import ip_of, parse_address

SOON = 10
GOAL = 5  # seconds from joining to knowing
CONES = [Nat.FULL_CONE, Nat.RESTRICTED]
CLOSED = [Nat.PORT_RESTRICTED, Nat.SYMMETRIC]


def name(nat):
    return nat.value


def lie(monkeypatch, node, *, reached):
    """Have a node's server say the same to everybody, and dial nobody."""
    status = V1Status.OK if reached else V1Status.E_DIAL_ERROR

    async def dial_all(_peer_id, _addresses):
        await trio.lowlevel.checkpoint()
        return V1Answer(status=status)

    async def dial_back(_peer_id, _address, _nonce):
        await trio.lowlevel.checkpoint()
        return DialStatus.OK if reached else DialStatus.E_DIAL_ERROR

    monkeypatch.setattr(node.service._server, "_dial_all", dial_all)
    monkeypatch.setattr(node.service._server, "_dial_back", dial_back)


def told_publicly(host):
    return [each for each in host.addresses if ip_of(each).is_global]


async def test_a_public_node_learns_it_soon(autojump_clock, world):
    await world.add_servers(4)
    node = await world.newcomer()
    joined = trio.current_time()
    await trio.sleep(SOON)
    ((at, change),) = node.changes
    assert (node.state, change.ip4.value, change.ip6.value) == ("public", "public", "unknown")
    assert at - joined <= GOAL


@pytest.mark.parametrize("nat", CLOSED, ids=name)
async def test_a_node_that_no_stranger_reaches_learns_it_soon(autojump_clock, world, nat):
    await world.add_servers(4)
    node = await world.newcomer(nat)
    joined = trio.current_time()
    await trio.sleep(SOON)
    ((at, change),) = node.changes
    assert (node.state, change.ip4.value) == ("private", "private")
    assert at - joined <= GOAL


@pytest.mark.parametrize("nat", CONES, ids=name)
async def test_a_cone_that_lets_in_whom_it_has_met_passes_for_public(autojump_clock, world, nat):
    # With an address-restricted cone that is as much as AutoNAT can tell: who is asked was met.
    await world.add_servers(4)
    node = await world.newcomer(nat)
    await trio.sleep(SOON)
    assert node.state == "public"


@pytest.mark.parametrize("nat", [Nat.NONE, *CLOSED], ids=name)
async def test_servers_of_the_first_version_tell_as_much(autojump_clock, full_world, nat):
    for each in await full_world.add_servers(4):
        each.host.remove_handler(DIAL_REQUEST)
    node = await full_world.newcomer(nat)
    await trio.sleep(SOON)
    assert node.state == ("public" if nat is Nat.NONE else "private")
    assert {each.result for each in node.service.info().evidence} == {
        Result.REACHED if nat is Nat.NONE else Result.FAILED
    }


async def test_one_server_is_enough_where_there_is_no_other(autojump_clock, world):
    await world.add_servers(1)
    reached, hidden = await world.newcomer(), await world.newcomer(Nat.SYMMETRIC)
    await trio.sleep(SOON)
    assert (reached.state, hidden.state) == ("public", "private")


async def test_a_node_without_peers_knows_nothing(autojump_clock, world):
    node = await world.newcomer()
    await trio.sleep(3600)
    assert (node.state, node.changes) == ("unknown", [])


async def test_a_node_that_does_not_listen_asks_nobody(autojump_clock, world):
    await world.add_servers(4)
    node = await world.newcomer(listen=False)
    await trio.sleep(3600)
    assert (node.state, node.service.info().evidence) == ("unknown", ())


async def test_neighbours_on_a_home_network_say_nothing_about_the_internet(
    autojump_clock, full_world
):
    router = full_world.network.add_router(Nat.FULL_CONE)
    nodes = [await full_world.add(router) for _ in range(4)]
    await full_world.hosts.connect_all([each.host for each in nodes])
    await trio.sleep(60)
    assert {each.state for each in nodes} == {"unknown"}


@pytest.mark.parametrize("mode", ["public", "private"])
async def test_the_settings_have_the_last_word(autojump_clock, world, mode):
    await world.add_servers(4)
    node = await world.newcomer(
        Nat.SYMMETRIC if mode == "public" else Nat.NONE, ReachabilitySettings(mode=mode)
    )
    await trio.sleep(60)
    info = node.service.info()
    assert (node.state, info.is_forced, info.evidence) == (mode, True, ())
    assert [change.ip4.value for _, change in node.changes] == [mode]


async def test_addresses_that_lead_nowhere_are_not_told(autojump_clock, full_world):
    await full_world.add_servers(4)
    node = await full_world.add(Nat.PORT_RESTRICTED)
    await full_world.join(node)
    await trio.sleep(0.5)
    assert told_publicly(node.host)  # four have seen it there, and nobody has tried it
    await trio.sleep(SOON)
    assert told_publicly(node.host) == []
    assert len(node.host.addresses) == 1  # for its neighbours at home
    assert node.host.candidate_addresses != node.host.addresses


async def test_only_verified_addresses_are_told_once_there_are_some(autojump_clock, full_world):
    await full_world.add_servers(4)
    node = await full_world.newcomer()
    await trio.sleep(SOON)
    node.host.judge_addresses([parse_address("/ip4/8.8.8.8/tcp/1")], [])
    assert told_publicly(node.host) == [parse_address("/ip4/8.8.8.8/tcp/1")]
    node.host.judge_addresses([parse_address("/ip6/2606:4700::1/tcp/1")], [])
    assert told_publicly(node.host) == [
        *node.host.listening,
        parse_address("/ip6/2606:4700::1/tcp/1"),
    ]


@pytest.mark.parametrize("nat", [Nat.NONE, Nat.PORT_RESTRICTED], ids=name)
async def test_a_minority_of_liars_changes_nothing(autojump_clock, full_world, monkeypatch, nat):
    servers = await full_world.add_servers(9)
    for each in servers[:4]:
        lie(monkeypatch, each, reached=nat is not Nat.NONE)
    node = await full_world.add(nat)
    await full_world.join(node, servers[4:])
    await trio.sleep(60)
    before = node.state
    await full_world.join(node, servers[:4])
    await trio.sleep(2700)
    assert node.state == before == ("public" if nat is Nat.NONE else "private")
    assert len(node.changes) == 1


@pytest.mark.parametrize("version", [1, 2])
async def test_that_we_were_reached_is_not_believed_if_nobody_came(
    autojump_clock, full_world, monkeypatch, version
):
    for each in await full_world.add_servers(4):
        lie(monkeypatch, each, reached=True)
        if version == 1:
            each.host.remove_handler(DIAL_REQUEST)
    node = await full_world.newcomer(Nat.PORT_RESTRICTED)
    await trio.sleep(60)
    assert node.state == "unknown"
    assert {each.result for each in node.service.info().evidence} == {Result.USELESS}


async def test_a_router_that_forgets_is_noticed_and_so_is_its_recovery(autojump_clock, full_world):
    settings = ReachabilitySettings(refresh_interval=300.0, retry_interval=10.0)
    servers = await full_world.add_servers(5)
    node = await full_world.newcomer(Nat.FULL_CONE, settings)
    await trio.sleep(SOON)
    router = node.machine.router
    assert node.state == "public"
    full_world.network.reboot(router)
    router.kind = Nat.PORT_RESTRICTED  # its forwarding is gone
    await trio.sleep(1)
    await full_world.join(node)
    await trio.sleep(600)
    assert node.state == "private"
    router.kind = Nat.FULL_CONE
    await full_world.join(node, servers)
    await trio.sleep(600)
    assert node.state == "public"


async def test_a_node_that_moves_learns_what_holds_there(autojump_clock, full_world):
    await full_world.add_servers(5)
    node = await full_world.newcomer(Nat.PORT_RESTRICTED)
    await trio.sleep(SOON)
    assert node.state == "private"
    router = node.machine.router
    full_world.network.reboot(router, moves=True)
    router.kind = Nat.FULL_CONE
    await trio.sleep(1)
    await full_world.join(node)
    await trio.sleep(120)
    assert node.state == "public"
    assert {ip_of(each) for each in told_publicly(node.host)} == {
        ip_of(parse_address(f"/ip4/{router.ip}/tcp/1"))
    }


async def test_whoever_is_asked_about_a_third_place_is_paid_for_it(
    autojump_clock, full_world, monkeypatch
):
    (helper,) = await full_world.add_servers(1)
    victim = await full_world.add(settings=ReachabilitySettings(mode="private"))
    node = await full_world.add(Nat.PORT_RESTRICTED)
    asked = []
    pieces = server.DialDataMeter.receive_piece

    def receive_piece(meter, piece):
        asked.append(piece.size)
        pieces(meter, piece)

    monkeypatch.setattr(server.DialDataMeter, "receive_piece", receive_piece)
    monkeypatch.setattr(node.service, "_reachable_from_elsewhere", lambda: victim.host.addresses)
    with node.host.events.subscribe(ReachabilityProbed) as probes:
        await full_world.join(node, [helper])
        probe = await probes.get()
    assert probe.addresses == tuple(victim.host.addresses)
    assert probe.result is Result.FAILED  # somebody else answers there
    assert 30_000 <= sum(asked) <= 104_096


async def test_stopping_takes_back_what_was_served(autojump_clock, full_world):
    (helper,) = await full_world.add_servers(1)
    before = set(helper.host.protocols)
    assert DIAL_REQUEST in before
    node = await full_world.newcomer()
    await full_world.hosts.leave(node.host)
    assert set(helper.host.protocols) == before
