import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.testing.network import Answer, Endpoint, Fixed, Nat, Router

KINDS = [each for each in Nat if each is not Nat.NONE]
CONES = [Nat.FULL_CONE, Nat.RESTRICTED, Nat.PORT_RESTRICTED]
INSIDE = Endpoint("192.168.0.2", 4001)
FAR = Endpoint("9.0.0.1", 5000)
SAME_HOST = Endpoint("9.0.0.1", 5001)
STRANGER = Endpoint("9.0.0.2", 5000)


def router(kind, **options):
    return Router(kind, "8.0.0.1", random.Random(0), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_gets_in_before_something_went_out(kind):
    assert router(kind).receive(FAR, INSIDE.port, 0.0) is None


@pytest.mark.parametrize(
    ("kind", "same_host", "stranger"),
    [
        (Nat.FULL_CONE, True, True),
        (Nat.RESTRICTED, True, False),
        (Nat.PORT_RESTRICTED, False, False),
        (Nat.SYMMETRIC, False, False),
    ],
)
def test_who_gets_in_by_a_mapping(kind, same_host, stranger):
    nat = router(kind)
    public = nat.send(INSIDE, FAR, 0.0)
    assert public.ip == "8.0.0.1"
    assert nat.receive(FAR, public.port, 1.0) == INSIDE
    assert (nat.receive(SAME_HOST, public.port, 1.0) == INSIDE) is same_host
    assert (nat.receive(STRANGER, public.port, 1.0) == INSIDE) is stranger


@pytest.mark.parametrize("kind", CONES)
def test_a_cone_shows_one_endpoint_to_all_and_keeps_the_port(kind):
    nat = router(kind)
    assert nat.public_endpoint(INSIDE, 0.0) is None
    seen = {nat.send(INSIDE, remote, 0.0) for remote in (FAR, SAME_HOST, STRANGER)}
    assert seen == {Endpoint("8.0.0.1", INSIDE.port)}
    assert nat.public_endpoint(INSIDE, 1.0) == Endpoint("8.0.0.1", INSIDE.port)


def test_a_symmetric_nat_shows_another_endpoint_to_each():
    nat = router(Nat.SYMMETRIC)
    seen = {nat.send(INSIDE, remote, 0.0) for remote in (FAR, SAME_HOST, STRANGER)}
    assert len(seen) == 3
    assert INSIDE.port not in {each.port for each in seen}
    assert nat.send(INSIDE, FAR, 1.0) in seen
    assert nat.public_endpoint(INSIDE, 1.0) is None


def test_two_machines_with_one_port_get_two():
    nat = router(Nat.FULL_CONE)
    other = Endpoint("192.168.0.3", INSIDE.port)
    ours, theirs = nat.send(INSIDE, FAR, 0.0), nat.send(other, FAR, 0.0)
    assert ours.port != theirs.port
    assert nat.receive(FAR, ours.port, 0.0) == INSIDE
    assert nat.receive(FAR, theirs.port, 0.0) == other


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_ends_when_it_is_not_used(kind):
    nat = router(kind, timeout=60.0)
    public = nat.send(INSIDE, FAR, 0.0)
    assert nat.receive(FAR, public.port, 60.0) == INSIDE
    assert nat.receive(FAR, public.port, 60.1) is None
    assert nat.public_endpoint(INSIDE, 60.1) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_stays_while_a_connection_uses_it(kind):
    nat = router(kind, timeout=60.0)
    public = nat.send(INSIDE, FAR, 0.0)
    nat.hold(public.port, FAR)
    assert nat.receive(FAR, public.port, 1e6) == INSIDE
    nat.release(public.port, FAR, 1e6)
    assert nat.receive(FAR, public.port, 1e6 + 60) == INSIDE
    assert nat.receive(FAR, public.port, 1e6 + 61) is None


def test_dead_mappings_are_not_kept():
    nat = router(Nat.SYMMETRIC, timeout=1.0)
    for number in range(10_000):
        nat.send(INSIDE, Endpoint("9.9.9.9", number), float(number))
    assert len(nat._by_port) < 200


def test_a_router_that_knows_too_many_forgets_the_oldest():
    nat = router(Nat.SYMMETRIC)
    for number in range(70_000):
        nat.send(INSIDE, Endpoint("9.9.9.9", number), 0.0)
    assert len(nat._by_port) == len(nat._by_key) <= 65536


PACKETS = st.lists(
    st.tuples(st.sampled_from([FAR, SAME_HOST, STRANGER]), st.booleans(), st.floats(0, 100)),
    max_size=40,
)


@given(PACKETS, st.sampled_from(KINDS))
def test_only_who_was_written_to_gets_in_as_far_as_the_kind_says(packets, kind):
    """A model of RFC 4787's filtering beside the router's."""
    nat, now, written = router(kind, timeout=50.0), 0.0, {}
    ports = {}
    for remote, outward, pause in packets:
        now += pause
        if outward:
            ports[remote] = nat.send(INSIDE, remote, now).port
            written[remote] = now
            continue
        for port in set(ports.values()):
            recent = {each for each, at in written.items() if now - at <= 50.0}
            passes = {
                Nat.FULL_CONE: bool(recent),
                Nat.RESTRICTED: any(each.ip == remote.ip for each in recent),
                Nat.PORT_RESTRICTED: remote in recent,
                Nat.SYMMETRIC: remote in recent and ports.get(remote) == port,
            }[kind]
            assert (nat.receive(remote, port, now) == INSIDE) is passes


# --- dials between machines -----------------------------------------------------------------------


def can_dial(network, loop, source, target, endpoint):
    target.listeners.setdefault(4001, "listener")
    knock = loop.dial(source, 4001, endpoint)
    loop.run(until=network.clock() + 20)
    return knock.answer is Answer.ACCEPTED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dialler", list(Nat))
def test_an_unsolicited_dial_passes_a_full_cone_with_a_mapping_only(
    make_network, make_loop, kind, dialler
):
    network = make_network(latency=Fixed(0.1))
    loop = make_loop(network)
    friend, source = network.add_machine(), network.add_machine(nat=dialler)
    target = network.add_machine(nat=kind)
    friend.listeners[4001] = "listener"
    assert not can_dial(network, loop, source, target, (target.public_ip, 4001))
    assert can_dial(network, loop, target, friend, (friend.ip, 4001))  # this makes the mapping
    public = network.public_endpoint(target, 4001) or (target.public_ip, 4001)
    assert can_dial(network, loop, source, target, public) is (kind is Nat.FULL_CONE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_address_leads_nowhere_from_outside_and_home_from_inside(
    make_network, make_loop, kind
):
    network = make_network()
    loop = make_loop(network)
    home = network.add_router(kind)
    one, other = network.add_machine(nat=home), network.add_machine(nat=home)
    elsewhere = network.add_machine(nat=kind)
    assert other.ip.startswith("192.168.")
    assert can_dial(network, loop, one, other, (other.ip, 4001))
    assert not can_dial(network, loop, network.add_machine(), other, (other.ip, 4001))
    assert elsewhere.ip == one.ip  # the same numbers in every home
    assert not can_dial(network, loop, elsewhere, other, (other.ip, 4001))


@pytest.mark.parametrize("hairpin", [False, True])
def test_machines_of_one_home_meet_at_its_public_address_if_it_hairpins(
    make_network, make_loop, hairpin
):
    network = make_network()
    loop = make_loop(network)
    home = network.add_router(Nat.FULL_CONE, hairpin=hairpin)
    one, other = network.add_machine(nat=home), network.add_machine(nat=home)
    friend = network.add_machine()
    assert can_dial(network, loop, other, friend, (friend.ip, 4001))
    public = network.public_endpoint(other, 4001)
    assert can_dial(network, loop, one, other, public) is hairpin


PUNCHABLE = {
    frozenset({one, other})
    for one in Nat
    for other in Nat
    if Nat.SYMMETRIC not in {one, other}
    or (
        {one, other} <= {Nat.SYMMETRIC, Nat.RESTRICTED, Nat.FULL_CONE, Nat.NONE}
        and {one, other} != {Nat.SYMMETRIC}
    )
}


@pytest.mark.parametrize("one", list(Nat))
@pytest.mark.parametrize("other", list(Nat))
def test_nat_by_nat_holes_are_punched_where_they_can_be(make_network, make_loop, one, other):
    """Both dial, at once, the endpoints that a third machine saw them at."""
    network = make_network(latency=Fixed(0.05))
    loop = make_loop(network)
    friend = network.add_machine()
    friend.listeners[4001] = "listener"
    ends = [network.add_machine(nat=one), network.add_machine(nat=other)]
    seen = []
    for end in ends:
        end.listeners[4001] = "listener"
        knock = loop.dial(end, 4001, (friend.ip, 4001))
        loop.run(until=network.clock() + 5)
        seen.append(knock.arrival.remote)
    knocks = [loop.dial(end, 4001, at) for end, at in zip(ends, reversed(seen), strict=True)]
    loop.run(until=network.clock() + 20)
    answers = {each.answer for each in knocks}
    open_ways = answers & {Answer.ACCEPTED, Answer.MET}
    assert bool(open_ways) is (frozenset({one, other}) in PUNCHABLE)
    if one in CONES[1:] and other in CONES[1:]:
        assert answers == {Answer.MET}


@pytest.mark.parametrize("kind", CONES)
def test_a_mapping_forgets_whom_it_has_not_heard_of_for_long_and_nobody_else(kind):
    nat = router(kind)
    public = nat.send(INSIDE, FAR, 0.0)
    nat.hold(public.port, FAR)  # a connection uses it
    for number in range(2000):
        nat.send(INSIDE, Endpoint("9.9.0.1", number), float(number))
    (mapping,) = nat._by_key.values()
    assert len(mapping.heard) <= 2 * (nat.timeout + 2)
    assert nat.receive(FAR, public.port, 2000.0) == INSIDE
    assert nat.receive(Endpoint("9.9.0.1", 1800), public.port, 2000.0) == INSIDE


@pytest.mark.parametrize("kind", CONES)
def test_a_router_that_was_switched_off_knows_nobody_any_more(kind):
    nat = router(kind)
    public = nat.send(INSIDE, FAR, 0.0)
    nat.hold(public.port, FAR)
    nat.forget_all()
    assert nat.receive(FAR, public.port, 1.0) is None
    nat.release(public.port, FAR, 1.0)  # of a connection that broke with it
    assert nat.receive(FAR, nat.send(INSIDE, FAR, 2.0).port, 2.0) == INSIDE
