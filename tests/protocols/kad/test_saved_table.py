import pytest
from multiaddr import Multiaddr

from p2pnode.protocols.kad.saved_table import FORMAT
from p2pnode.wire.peer_id import PeerId

PEERS = {
    PeerId(b"\x12\x20" + bytes([number]) * 32): [Multiaddr(f"/ip4/10.0.0.{number}/tcp/4001")]
    for number in range(1, 9)
}


def test_a_table_is_read_as_it_was_written():
    assert FORMAT.parse(FORMAT.render(PEERS)) == PEERS


@pytest.mark.parametrize("addresses", ['["x"]', "[1]", "1", "null"])
def test_what_are_no_addresses_is_refused(addresses):
    peer_id = next(iter(PEERS))
    with pytest.raises(ValueError, match="not a saved routing table"):
        FORMAT.parse(f'{{"format": 1, "peers": {{"{peer_id}": {addresses}}}}}')
