import pytest

from p2pnode.testing.network import Answer, Endpoint, Fixed


@pytest.fixture
def world(make_network, make_loop):
    network = make_network(latency=Fixed(0.1))
    loop = make_loop(network)
    source, target = network.add_machine(), network.add_machine()
    target.listeners[80] = "listener"
    return network, loop, source, target


def test_an_accepted_dial_takes_a_round_trip(world, clock):
    _, loop, source, target = world
    knock = loop.dial(source, 5000, (target.ip, 80))
    loop.run()
    assert knock.answer is Answer.ACCEPTED
    assert clock.now == pytest.approx(0.2)
    assert knock.arrival.machine is target
    assert (knock.arrival.port, knock.arrival.remote) == (80, (source.ip, 5000))
    assert source.knocks == {}


def test_a_port_nobody_listens_on_refuses_in_a_round_trip(world, clock):
    _, loop, source, target = world
    knock = loop.dial(source, 5000, (target.ip, 81))
    loop.run()
    assert knock.answer is Answer.REFUSED
    assert knock.arrival is None
    assert clock.now == pytest.approx(0.2)


@pytest.mark.parametrize("fault", ["nobody", "crash", "partition"])
def test_silence_answers_nothing(world, fault):
    network, loop, source, target = world
    ip = target.ip
    if fault == "nobody":
        ip = "9.9.9.9"
    elif fault == "crash":
        network.take_down(target)
    else:
        network.partition([source], [target])
    knock = loop.dial(source, 5000, (ip, 80))
    loop.run(until=100.0)
    assert knock.answer is None


@pytest.mark.parametrize(("healed_at", "answered_at"), [(0.5, 1.2), (2.0, 3.2), (6.9, 7.2)])
def test_a_way_that_opens_is_found_by_the_next_syn(world, clock, healed_at, answered_at):
    """They are sent after 0, 1, 3, 7, 15 seconds."""
    network, loop, source, target = world
    network.partition([source], [target])
    knock = loop.dial(source, 5000, (target.ip, 80))
    while clock.now < healed_at:
        clock.now = min(knock.next_at, healed_at)
        if clock.now < healed_at:
            knock.advance(clock.now)
    network.heal()
    loop.run()
    assert knock.answer is Answer.ACCEPTED
    assert clock.now == pytest.approx(answered_at)


def test_lost_syns_and_answers_are_sent_again(make_network, make_loop, clock):
    network = make_network(latency=Fixed(0.1), loss=0.3)
    loop = make_loop(network)
    source, target = network.add_machine(), network.add_machine()
    target.listeners[80] = "listener"
    took = []
    for number in range(200):
        began = clock.now
        knock = loop.dial(source, 5000 + number, (target.ip, 80))
        loop.run(until=began + 200)
        assert knock.answer is Answer.ACCEPTED
        took.append(round(clock.now - began, 3))
    assert set(took) >= {0.2, 1.2, 2.2, 3.2}  # 2.2: both the SYN and its answer were lost once
    assert 0.4 < took.count(0.2) / len(took) < 0.6  # 0.7 * 0.7


def test_a_listener_takes_one_connection_however_often_the_syn_comes(world, clock):
    network, _, source, target = world
    network.latency = Fixed(2.0)  # a second SYN is on its way before the first one is there
    knock = network.dial(source, 5000, Endpoint(target.ip, 80))
    taken = 0
    while knock.answer is None:
        clock.now = knock.next_at
        taken += knock.advance(clock.now)
    assert taken == 1
    assert knock.answer is Answer.ACCEPTED
    assert clock.now == pytest.approx(4.0)


def test_two_that_dial_each_other_from_the_ports_they_dial_meet(world, clock):
    network, loop, one, other = world
    one.listeners[80] = "listener"
    ours = loop.dial(one, 80, (other.ip, 80))
    theirs = loop.dial(other, 80, (one.ip, 80))
    loop.run()
    assert (ours.answer, theirs.answer) == (Answer.MET, Answer.MET)
    assert {ours.met, theirs.met} == {ours, theirs}
    assert network.clock() == pytest.approx(0.2)


def test_who_dials_from_other_ports_does_not_meet(world):
    _, loop, one, other = world
    one.listeners[80] = "listener"
    ours = loop.dial(one, 5000, (other.ip, 80))
    theirs = loop.dial(other, 5000, (one.ip, 80))
    loop.run()
    assert (ours.answer, theirs.answer) == (Answer.ACCEPTED, Answer.ACCEPTED)
