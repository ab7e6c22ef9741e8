"""Values that live for seconds: few copies, none beside the way, and nobody silent waited for."""

import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.validators import Validator

KEY = b"/set/key"


def _holders(nodes, key=KEY):
    """Return the positions of those who keep the key, among the nodes closest to it first."""
    ordered = sorted(nodes, key=lambda node: point(node.peer_id) ^ point(key))
    return [place for place, node in enumerate(ordered) if node.dht._core.records.get(key, 0)]


async def test_a_value_is_stored_at_as_many_of_the_closest_as_asked_for(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(28)
        writer = await net.start(nodes[:1], mode="client")
        assert await writer.dht.put_many({KEY: b"v"}, copies=7) == {KEY: 7}
        assert _holders(nodes) == list(range(7))
        reader = await net.start(nodes[:1], mode="client")
        assert await reader.dht.get_value(KEY) == b"v"


@pytest.mark.parametrize("copies", [5, 1000])
async def test_a_writer_that_is_close_enough_keeps_one_of_the_copies(
    dht_network, autojump_clock, copies
):
    async with dht_network() as net:
        nodes = await net.grow(26)
        ordered = sorted(nodes, key=lambda node: point(node.peer_id) ^ point(KEY))
        expected = min(copies, DhtSettings().bucket_size)
        assert await ordered[2].dht.put_many({KEY: b"v"}, copies=copies) == {KEY: expected}
        assert _holders(nodes) == list(range(expected))
        other = b"/set/other"
        far = max(nodes, key=lambda node: point(node.peer_id) ^ point(other))
        await far.dht.put_many({other: b"v"}, copies=copies)
        assert far.dht._core.records.get(other, 0) is None


@pytest.mark.parametrize("silent", [False, True])
async def test_where_a_peer_fails_the_next_one_gets_its_copy(dht_network, autojump_clock, silent):
    async with dht_network() as net:
        nodes = await net.grow(28)
        writer = await net.start(nodes[:1], mode="client")
        await writer.dht.put_many({KEY: b"v"}, copies=7)  # now it knows who is closest
        ordered = sorted(nodes, key=lambda node: point(node.peer_id) ^ point(KEY))
        for node in ordered[1:6:2]:
            if silent:
                net.world.crash(node.host)
            await node.crash()
        begun = trio.current_time()
        assert await writer.dht.put_many({KEY: b"w"}, copies=7) == {KEY: 7}
        assert trio.current_time() - begun <= 2 * DhtSettings().patience
        values = [node.dht._core.value(KEY, wall_time()) for node in ordered]
        assert [place for place, value in enumerate(values) if value == b"vw"] == [0, 2, 4, 6]
        assert [place for place, value in enumerate(values) if value == b"w"] == [7, 8, 9]


class Joined(Validator):
    """Values are sets of bytes; the newest need not win, as all of them count."""

    def __init__(self, is_renewed):
        self.is_renewed = is_renewed

    def validate(self, key, value, now):
        pass

    def merge(self, key, values, now):
        return bytes(sorted(set(b"".join(values))))

    def expires(self, key, value):
        return None


@pytest.mark.parametrize("is_renewed", [False, True])
async def test_what_is_soon_stored_again_is_not_kept_beside_the_way(
    dht_network, autojump_clock, is_renewed
):
    async with dht_network() as net:
        nodes = await net.grow(32, validators={"set": Joined(is_renewed)})
        await nodes[0].dht.put_many({KEY: b"v"}, copies=3)
        stored = len(_holders(nodes))
        for node in nodes[8:28]:
            assert await node.dht.get_value(KEY) == b"v"
        await trio.testing.wait_all_tasks_blocked()
        assert len(_holders(nodes)) == stored if is_renewed else len(_holders(nodes)) > stored


async def test_holders_that_fell_silent_do_not_hold_up_the_next_look_up(
    dht_network, autojump_clock
):
    async with dht_network() as net:
        nodes = await net.grow(12)
        reader = await net.start(nodes[:1], mode="client")
        await nodes[0].dht.put_value(KEY, b"v")
        await reader.dht.get_value(KEY)

        async def mute(_stream):
            await trio.sleep_forever()

        for peer in reader.dht._values._holders.recall(KEY, trio.current_time()):
            (node,) = [each for each in nodes if each.peer_id == peer]
            node.host.set_handler(reader.dht.settings.protocol, mute)
            for stream in list(reader.host.connection_to(peer).streams):
                stream.reset()
        before = trio.current_time()
        assert await reader.dht.get_value(KEY) == b"v"
        assert trio.current_time() - before < 2 * DhtSettings().patience + 0.5


@pytest.mark.parametrize(("is_renewed", "asked"), [(False, 5), (True, 10)])
async def test_values_that_many_add_to_are_read_from_more_holders(
    dht_network, autojump_clock, is_renewed, asked
):
    async with dht_network() as net:
        nodes = await net.grow(32, validators={"set": Joined(is_renewed)}, parallelism=1)
        keepers = sorted(nodes, key=lambda node: point(node.peer_id) ^ point(KEY))[:20]
        for number, node in enumerate(keepers):
            node.dht._core.store(KEY, b"%c" % (97 + number), wall_time())
        reader = next(node for node in nodes if node not in keepers)
        found = len(await reader.dht.get_value(KEY))
        assert asked <= found < 2 * asked
