"""Any order of holds and releases, over all scopes, against a simple model of what is held."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from p2pnode.config import LimitSettings
from p2pnode.errors import Limit, ResourceLimitError
from p2pnode.host.budgets import Budgets
from p2pnode.host.budgets.scopes import UNLIMITED, Kind, Resource
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(3)]
ADDRESSES = [
    parse_address(f"/ip4/{ip}/tcp/1") for ip in ("1.2.3.4", "1.2.3.5", "1.2.4.4", "127.0.0.1")
]
# Small enough that every limit is met within a few steps.
LIMITS = LimitSettings(
    max_connections=5,
    max_inbound_connections=4,
    max_outbound_connections=3,
    max_connections_per_peer=3,
    max_inbound_connections_per_address=2,
    max_inbound_connections_per_network=3,
    max_inbound_streams=6,
    max_outbound_streams=5,
    max_inbound_streams_per_peer=4,
    max_outbound_streams_per_peer=3,
    max_streams_per_connection=5,
    max_inbound_streams_per_protocol=4,
    max_outbound_streams_per_protocol=3,
    max_inbound_streams_per_protocol_per_peer=2,
    max_outbound_streams_per_protocol_per_peer=2,
    max_bytes=1000,
    max_bytes_per_network=800,
    max_bytes_per_address=600,
    max_bytes_per_peer=500,
    max_bytes_per_connection=400,
    connection_burst_per_address=3,
    connection_burst_per_network=4,
    stream_burst_per_peer=6,
    streams_per_second_per_peer=1.0,
)


class Held:
    """A connection as the model knows it."""

    def __init__(self, account):
        self.account = account
        self.streams = []
        self.open = True


class HeldStream:
    def __init__(self, connection, account, inbound, window):
        self.connection = connection
        self.account = account
        self.inbound = inbound
        self.window = window
        self.muxed = True
        self.serving = None
        self.protocol = None

    @property
    def counts(self):
        return self.connection.open and (self.muxed or self.serving or self.window)


class AnyOrder(RuleBasedStateMachine):
    connections = Bundle("connections")
    streams = Bundle("streams")

    def __init__(self):
        super().__init__()
        self.budgets = Budgets(LIMITS)
        self.now = 0.0
        self.held = []
        self.refused = Counter()

    def attempt(self, action):
        """Run `action`; a refusal must leave everything as it was."""
        before = self.charged()
        try:
            return action()
        except ResourceLimitError as error:
            assert self.charged() == before
            self.refused[error.limit] += 1
            return None

    def charged(self):
        return {
            (each.kind, each.key): tuple(each.used)
            for kind in Kind
            for each in self.budgets.scopes.of(kind)
            if any(each.used)
        }

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds):
        self.now += seconds

    @rule(
        target=connections,
        peer_id=st.sampled_from(PEERS),
        address=st.sampled_from(ADDRESSES),
        inbound=st.booleans(),
    )
    def connect(self, peer_id, address, inbound):
        def open_account():
            if inbound:
                account = self.budgets.accept(address, self.now)
            else:
                account = self.budgets.dial(peer_id)
            try:
                if not inbound:
                    account.locate(address, self.now)
                account.identify(peer_id, self.now)
            except ResourceLimitError:
                account.close()
                raise
            return account

        account = self.attempt(open_account)
        if account is None:
            return multiple()
        self.held.append(Held(account))
        return self.held[-1]

    @rule(target=streams, connection=connections, inbound=st.booleans(), window=st.integers(1, 200))
    def open_stream(self, connection, inbound, window):
        if not connection.open:
            return multiple()
        account = self.attempt(
            lambda: connection.account.open_stream(inbound=inbound, window=window, now=self.now)
        )
        if account is None:
            return multiple()
        connection.streams.append(HeldStream(connection, account, inbound, window))
        return connection.streams[-1]

    @rule(stream=streams, protocol=st.sampled_from(["/x", "/y"]))
    def speak(self, stream, protocol):
        if stream.protocol is None and stream.counts:
            self.attempt(lambda: stream.account.speak(protocol, self.now))
            stream.protocol = stream.account.protocol

    @rule(stream=streams, size=st.integers(1, 300))
    def grow(self, stream, size):
        before = self.charged()
        if stream.account.grow(size):
            assert stream.counts
            stream.window += size
        else:
            assert self.charged() == before

    @rule(stream=streams)
    def serve(self, stream):
        if stream.serving is None and stream.counts:
            stream.serving = stream.account.serving()
            stream.serving.__enter__()

    @rule(stream=streams)
    def stop_serving(self, stream):
        if stream.serving is not None:
            stream.serving.__exit__(None, None, None)
            stream.serving = None

    @rule(stream=streams, part=st.floats(0, 1))
    def end(self, stream, part):
        unread = int(stream.window * part)
        stream.account.end(unread)
        stream.window = unread
        stream.muxed = False

    @rule(connection=connections)
    def close(self, connection):
        connection.account.close()
        connection.open = False

    @rule(connection=consumes(connections))
    def close_for_good(self, connection):
        self.close(connection)
        self.close(connection)

    @invariant()
    def nothing_exceeds_its_limit(self):
        for kind in Kind:
            for scope in self.budgets.scopes.of(kind):
                assert all(
                    0 <= used <= limit for used, limit in zip(scope.used, scope.limits, strict=True)
                )

    @invariant()
    def what_is_charged_is_what_is_held(self):
        live = [each for each in self.held if each.open]
        streams = [each for one in live for each in one.streams if each.counts]
        node = dict(zip(Resource, self.budgets._node.used, strict=True))
        inbound = sum(each.account.direction == "inbound" for each in live)
        assert node[Resource.CONNECTIONS] == len(live)
        assert node[Resource.INBOUND_CONNECTIONS] == inbound
        assert node[Resource.STREAMS] == len(streams)
        assert node[Resource.INBOUND_STREAMS] == sum(each.inbound for each in streams)
        assert node[Resource.BYTES] == sum(each.window for each in streams)
        for peer_id in PEERS:
            scope = next(
                (each for each in self.budgets.scopes.of(Kind.PEER) if each.key == peer_id), None
            )
            of_peer = [each for each in streams if each.connection.account.peer_id == peer_id]
            assert (scope.used[Resource.BYTES] if scope else 0) == sum(
                each.window for each in of_peer
            )
        spoken = Counter(each.protocol for each in streams if each.protocol is not None)
        for scope in self.budgets.scopes.of(Kind.PROTOCOL):
            assert scope.used[Resource.STREAMS] == spoken.pop(scope.key, 0)
        assert not spoken

    @invariant()
    def every_refusal_is_counted(self):
        assert self.budgets.report().refusals == self.refused

    def teardown(self):
        for connection in self.held:
            connection.account.close()
        (node,) = self.budgets.scopes._held.values()
        assert not any(node.used)
        assert node.holders == 1


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_every_limit_there_is_can_be_reported():
    names = {
        f"{kind}.{resource.name.lower()}"
        for kind, limits in Budgets(LIMITS).scopes.limits.items()
        for resource, limit in zip(Resource, limits, strict=True)
        if limit < UNLIMITED
    }
    rates = {each.value for each in Limit if each.is_rate}
    assert {each.value for each in Limit} == names | rates | {"node.handshakes"}
