import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.testing.network import Exponential, Fixed, LinkGrade, Normal, VirtualNetwork, Wire
from p2pnode.testing.network.machines import Machine
from p2pnode.testing.network.nat import Endpoint
from p2pnode.testing.network.wires import MIN_RTO, PACKET_BYTES


class SilentWire(Wire):
    def receive_held(self, now):
        pass

    def receive_resumed(self, now):
        pass

    def receive_reset(self, end, at):
        pass


def pair(network, wire_between, **grade):
    grade = LinkGrade(**grade)
    machines = network.add_machine(grade=grade), network.add_machine(grade=grade)
    return machines, wire_between(network, *machines)


@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 2)), min_size=1, max_size=30),
    st.integers(0, 1000),
    st.sampled_from([math.inf, 50_000.0]),
    st.sampled_from([0.0, 0.1]),
)
def test_bytes_are_never_reordered_nor_early_nor_too_fast(sends, seed, rate, loss):
    network = VirtualNetwork(random.Random(seed), latency=Normal(0.1, 0.05), clock=lambda: 0.0)
    grade = LinkGrade(up=rate, down=rate, delay=0.02, jitter=0.1, loss=loss)
    one, other = network.add_machine(grade=grade), network.add_machine(grade=grade)
    flow = SilentWire(network, (one, other), (Endpoint(one.ip, 1), Endpoint(other.ip, 2))).flows[0]
    now, dues, first = 0.0, [], None
    for size, pause in sends:
        now += pause
        dues.append(flow.due(size, now))
        first = now if first is None else first
        assert dues[-1] >= now + 0.04 + size / rate
    assert dues == sorted(dues)
    assert dues[-1] - first >= sum(size for size, _ in sends) / rate


def test_the_slower_of_two_links_decides(make_network):
    network = make_network()
    fast = network.add_machine(grade=LinkGrade(up=10_000.0, down=10_000.0))
    slow = network.add_machine(grade=LinkGrade(up=100.0, down=1000.0))
    endpoints = Endpoint(fast.ip, 1), Endpoint(slow.ip, 2)
    down, up = SilentWire(network, (fast, slow), endpoints).flows
    assert down.due(1000, 0.0) == pytest.approx(0.1 + 1.0)  # one piece waits for its last byte
    assert up.due(1000, 0.0) == pytest.approx(10.0 + 0.1)


def test_streams_of_one_machine_share_its_link(make_network, wire_between):
    network = make_network()
    server = network.add_machine(grade=LinkGrade(up=1000.0))
    flows = [wire_between(network, server, network.add_machine()).flows[0] for _ in range(10)]
    assert [flow.due(100, 0.0) for flow in flows] == pytest.approx(
        [0.1 * (number + 1) for number in range(10)]
    )


# --- loss -----------------------------------------------------------------------------------------


def test_a_lost_packet_costs_a_timeout_and_a_burst_only_a_round_trip(make_network, wire_between):
    network = make_network(latency=Fixed(0.05), loss=0.02)
    _, wire = pair(network, wire_between)
    flow = wire.flows[0]
    small, large = [], []
    for number in range(4000):
        at = 1000.0 * number
        small.append(flow.due(100, at) - at)
        large.append(flow.due(20 * PACKET_BYTES, at + 500) - at - 500)
    hit = [each for each in small if each > 0.06]
    assert len(hit) / len(small) == pytest.approx(0.02, rel=0.3)
    assert statistics.median(hit) == pytest.approx(0.05 + max(MIN_RTO, 0.15))
    hit = [each for each in large if each > 0.06]
    assert len(hit) / len(large) == pytest.approx(1 - 0.98**20, rel=0.1)
    assert statistics.median(hit) == pytest.approx(0.05 + 0.1)


def test_losses_break_so_many_connections_as_they_are_told(make_network, wire_between):
    network = make_network(latency=Fixed(0.05), loss=0.1, loss_resets=0.5)
    _, wire = pair(network, wire_between)
    for number in range(2000):
        wire.flows[0].due(100, float(number))
    resets = [note for note in wire.notes if note[1] == 0]
    assert len(resets) / 2000 == pytest.approx(0.05, rel=0.3)
    assert len(wire.notes) == 2 * len(resets)  # both ends are told


def test_a_way_that_loses_everything_breaks_the_connection_in_the_end(make_network, wire_between):
    network = make_network(latency=Fixed(0.05), loss=1.0)
    _, wire = pair(network, wire_between)
    due = wire.flows[0].due(100, 0.0)
    assert [note[0] for note in wire.notes] == ["reset", "reset"]
    assert 600 < due < 1200  # as Linux gives up: in about a quarter of an hour


# --- ways that are cut ----------------------------------------------------------------------------


def test_a_cut_way_holds_bytes_and_a_healed_one_carries_again(make_network, wire_between, clock):
    network = make_network(latency=Fixed(0.05))
    machines, wire = pair(network, wire_between)
    flow = wire.flows[0]
    assert flow.due(10, 0.0) == pytest.approx(0.05)
    clock.now = 10.0
    network.partition([machines[0]], [machines[1]])
    assert not network.carries(*machines)
    assert wire.notes == [("held", 10.0)]
    assert flow.due(10, 11.0) == math.inf
    clock.now = 30.0
    network.heal()
    assert wire.notes[1:] == [("resumed", 30.0)]
    assert network.carries(*machines)
    # Tried again at 10.2, 10.6, 11.4, 13.0, 16.2, 22.6 and 35.4 seconds.
    assert flow.restarts_at == pytest.approx(35.4)
    assert flow.due(10, 30.0) == pytest.approx(35.45)
    assert flow.due(10, 40.0) == pytest.approx(40.05)


def test_a_short_cut_is_hardly_felt(make_network, wire_between, clock):
    network = make_network(latency=Fixed(0.05))
    machines, wire = pair(network, wire_between)
    network.take_down(machines[1])
    clock.now = 0.5
    network.bring_up(machines[1])
    assert wire.flows[0].restarts_at == pytest.approx(0.6)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.data())
def test_a_partition_cuts_between_its_groups_and_nowhere_else(sides, data):
    network = VirtualNetwork(random.Random(0), clock=lambda: 0.0)
    machines = [network.add_machine() for _ in sides]
    groups = [[each for each, at in zip(machines, sides, strict=True) if at == n] for n in range(3)]
    network.partition(*groups)
    for one, here in zip(machines, sides, strict=True):
        for other, there in zip(machines, sides, strict=True):
            assert network.carries(one, other) is (here == there)
    off = data.draw(st.sampled_from(machines))
    network.heal()
    network.take_down(off)
    for one in machines:
        for other in machines:
            assert network.carries(one, other) is (off not in {one, other})


def test_a_machine_in_no_group_reaches_all(make_network):
    network = make_network()
    one, other, bridge = (network.add_machine() for _ in range(3))
    network.partition([one], [other])
    assert network.carries(one, bridge)
    assert network.carries(bridge, other)
    assert not network.carries(one, other)


def test_a_closed_wire_is_forgotten_by_both_machines(make_network, wire_between):
    network = make_network()
    machines, wire = pair(network, wire_between)
    assert all(wire in machine.wires for machine in machines)
    wire.close(0.0)
    wire.close(0.0)
    assert not any(machine.wires for machine in machines)


# --- addresses ------------------------------------------------------------------------------------


def test_machines_are_spread_over_the_internet(make_network):
    network = make_network()
    machines = [network.add_machine() for _ in range(3000)]
    ips = [each.ip for each in machines]
    assert len(set(ips)) == 3000
    assert len({ip.rpartition(".")[0].rpartition(".")[0] for ip in ips}) > 2900
    assert all(isinstance(each, Machine) and each.public_ip == each.ip for each in machines)


def test_an_address_is_given_once(make_network):
    network = make_network(latency=Exponential(1.0))
    network.add_machine(ip="9.9.9.9")
    with pytest.raises(ValueError, match=r"9\.9\.9\.9 is taken"):
        network.add_machine(ip="9.9.9.9")
