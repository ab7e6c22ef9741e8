import random

import pytest

from p2pnode.errors import P2PNodeError
from p2pnode.rpc.messages import PREFIX_BYTES, Request, decode_request, encode_request
from p2pnode.rpc.schema import TensorMeta
from p2pnode.testing.soak.spoilt import WAYS
from p2pnode.wire.uids import Uid

META = TensorMeta("float32", (2, 4))
REQUEST = Request(operation="forward", uid=Uid("open:r", "nop.0"), tensors=(META,))
VALID = encode_request(REQUEST) + bytes(META.nbytes)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_sent_is_never_the_valid_request(name):
    for seed in range(50):
        assert WAYS[name](random.Random(seed), REQUEST, bytes(META.nbytes)).data != VALID


@pytest.mark.parametrize("name", WAYS)
def test_a_seed_says_what_is_sent(name):
    first, again = (WAYS[name](random.Random(3), REQUEST, bytes(META.nbytes)) for _ in range(2))
    assert first == again


def test_some_headers_cannot_be_read_and_some_can():
    readable = 0
    for seed in range(100):
        data = WAYS["bits flipped"](random.Random(seed), REQUEST, b"").data
        try:
            decode_request(data[PREFIX_BYTES:])
        except P2PNodeError:
            continue
        readable += 1
    assert 0 < readable < 100
