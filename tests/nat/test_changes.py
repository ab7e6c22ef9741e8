"""A node that only relays can reach, and what it lives through."""

import contextlib

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

# So that the loss of a connection is noticed within seconds, and nobody needs to be asked whether a
# symmetric router lets others in.
ALERT = ["--set", "network.keepalive_interval=1", "--set", "network.keepalive_timeout=2"]
HIDDEN = [*ALERT, "--set", "reachability.mode=private"]


@pytest.mark.usefixtures("if_full")
def test_a_relayed_node_is_reached_again_when_its_router_reboots_its_address_moves_and_a_relay_dies(
    lab, eventually, ask, ping, tmp_path
):
    def relays_of(daemon):
        held = ask(daemon, "status")["relay"]["held"]
        return [each["relay"] for each in held["reservations"]]

    homes = [lab.router("symmetric", delay=0.01) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        relays = {}
        bootstrap = []
        for number in range(3):
            machine = lab.host()
            listen = f"/ip4/{machine.ip}/tcp/4001"
            options = [*ALERT, "--set", "reachability.mode=public", *bootstrap]
            started = machine.daemon(tmp_path / f"relay-{number}", *options, listen=listen)
            relay = stack.enter_context(started)
            relays[relay.peer_id] = relay
            bootstrap += ["--bootstrap", relay.address]
        one, other = (
            stack.enter_context(
                home.host().daemon(tmp_path / f"home-{number}", *HIDDEN, *bootstrap)
            )
            for number, home in enumerate(homes)
        )
        eventually(lambda: relays_of(one) and relays_of(other))
        assert eventually(lambda: ping(one, other))

        homes[1].reboot()
        assert eventually(lambda: ping(one, other), timeout=60)

        homes[1].move()
        assert eventually(lambda: ping(one, other), timeout=60)

        dead = relays_of(other)[0]
        relays[dead].kill()
        eventually(lambda: dead not in relays_of(other), timeout=60)
        assert eventually(lambda: ping(one, other), timeout=60)
