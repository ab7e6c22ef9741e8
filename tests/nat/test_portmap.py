"""A daemon behind a real router's port mapping daemon, and one outside that dials it."""

import signal

import pytest

pytestmark = pytest.mark.real


@pytest.fixture
def stage(lab, igd, eventually):
    return lab, igd, eventually


@pytest.fixture
def mapped(ask):
    return lambda daemon: ask(daemon, "status")["mapped"]


@pytest.mark.parametrize("protocol", ["PCP", "UPnP"])
def test_a_node_behind_a_router_that_maps_is_dialled_by_strangers(
    stage, ask, mapped, tmp_path, protocol
):
    lab, igd, eventually = stage
    outside, router = lab.host(), lab.router("port-restricted")
    daemon_of_router = igd(router, natpmp=protocol == "PCP")
    with router.host().daemon(tmp_path / "home") as home:
        public = f"/ip4/{router.public_ip}/tcp/4001"
        eventually(lambda: mapped(home) == [public])
        assert ask(home, "status")["portmap"]["protocol"] == protocol
        with outside.daemon(tmp_path / "outside") as stranger:
            assert ask(stranger, "ping", peer=f"{public}/p2p/{home.peer_id}")["seconds"]
            (connection,) = ask(home, "peers")
            assert connection["direction"] == "inbound"
        assert len(daemon_of_router.mappings()) == 1
        home.terminate()
        assert daemon_of_router.mappings() == []


def test_a_router_that_restarts_is_asked_again_as_soon_as_it_says_so(stage, mapped, tmp_path):
    lab, igd, eventually = stage
    router = lab.router("port-restricted")
    daemon_of_router = igd(router)
    with router.host().daemon(tmp_path / "home") as home:
        eventually(lambda: mapped(home))
        daemon_of_router.restart()
        eventually(daemon_of_router.mappings)  # its regular look would come in a minute
        assert mapped(home) == [f"/ip4/{router.public_ip}/tcp/4001"]


def test_a_node_that_is_killed_leaves_a_mapping_that_the_next_one_takes_over(
    stage, mapped, tmp_path
):
    lab, igd, eventually = stage
    router = lab.router("port-restricted")
    daemon_of_router = igd(router)
    machine = router.host()
    with machine.daemon(tmp_path / "home") as home:
        eventually(lambda: mapped(home))
        home.process.send_signal(signal.SIGKILL)
    assert len(daemon_of_router.mappings()) == 1
    with machine.daemon(tmp_path / "home") as home:
        eventually(lambda: mapped(home))
        assert len(mapped(home)) == 1
