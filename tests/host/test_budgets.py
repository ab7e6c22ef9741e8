import contextlib
import functools

import pytest

from p2pnode.config import NetworkSettings
from p2pnode.errors import ResourceLimitError
from p2pnode.host.budgets import Budgets
from p2pnode.wire.keys import PrivateKey

SETTINGS = NetworkSettings(
    max_handshakes=2,
    max_connections=3,
    max_connections_per_peer=2,
    max_inbound_streams_per_peer=2,
    max_inbound_streams_per_protocol_per_peer=1,
)
A, B = (PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))


@pytest.fixture
def budgets():
    return Budgets(SETTINGS)


@pytest.mark.parametrize(
    ("hold", "limit", "sentence"),
    [
        (lambda budgets: budgets.connection(A), 2, "limit of 2 connections with one peer"),
        (lambda budgets: budgets.inbound_stream(A), 2, "limit of 2 inbound streams from one peer"),
        (lambda budgets: budgets.protocol_stream(A, "/x"), 1, "1 inbound streams of one protocol"),
    ],
)
def test_each_budget_refuses_what_exceeds_it_and_takes_more_when_some_ends(
    budgets, hold, limit, sentence
):
    with contextlib.ExitStack() as held:
        for _ in range(limit):
            held.enter_context(hold(budgets))
        with pytest.raises(ResourceLimitError, match=sentence):
            held.enter_context(hold(budgets))
    with hold(budgets):
        pass


def test_one_peer_does_not_use_up_what_belongs_to_another(budgets):
    with budgets.inbound_stream(A), budgets.inbound_stream(A), budgets.inbound_stream(B):
        pass
    with budgets.protocol_stream(A, "/x"), budgets.protocol_stream(A, "/y"):
        pass


def test_the_node_has_a_limit_for_all_peers_together(budgets):
    with budgets.connection(A), budgets.connection(A):
        assert not budgets.is_full
        with budgets.connection(B):
            assert budgets.is_full
            with pytest.raises(ResourceLimitError, match="limit of 3 connections"):
                budgets.connection(B).__enter__()
    assert not budgets.is_full


def test_a_connection_refused_for_its_peer_leaves_no_charge_on_the_node(budgets):
    with budgets.connection(A), budgets.connection(A):
        with pytest.raises(ResourceLimitError):
            budgets.connection(A).__enter__()
        with budgets.connection(B):
            pass


def test_an_error_inside_gives_everything_back(budgets):
    for _ in range(5):
        with pytest.raises(RuntimeError), budgets.inbound_stream(B), budgets.connection(A):
            raise RuntimeError
        with pytest.raises(RuntimeError), budgets.inbound_handshake("ip", pytest.fail):
            raise RuntimeError
    assert budgets.handshakes == 0


def test_the_oldest_handshake_of_the_largest_crowd_gives_way_to_a_new_one():
    budgets = Budgets(NetworkSettings(max_handshakes=4))
    gone = []
    with contextlib.ExitStack() as held:
        for name in ("quiet", "loud 1", "loud 2", "also quiet", "loud 3", "loud 4"):
            give_way = functools.partial(gone.append, name)
            held.enter_context(budgets.inbound_handshake(name.partition(" ")[0], give_way))
        assert gone == ["loud 1", "loud 2"]
        assert budgets.handshakes == 4
    assert budgets.handshakes == 0
