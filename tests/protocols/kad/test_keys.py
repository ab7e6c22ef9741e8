import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.kad.keys import (
    KEY_BITS,
    MAX_RANDOM_PREFIX,
    common_prefix,
    point,
    random_key,
)

points = st.integers(0, 2**KEY_BITS - 1)


def test_a_point_is_the_sha256_of_the_key():
    assert point(b"abc") == int.from_bytes(hashlib.sha256(b"abc").digest(), "big")


@given(points, points)
def test_shared_bits_are_the_leading_ones(a, b):
    shared = common_prefix(a, b)
    assert a >> (KEY_BITS - shared) == b >> (KEY_BITS - shared)
    if a != b:
        assert (a >> (KEY_BITS - shared - 1)) != (b >> (KEY_BITS - shared - 1))


@given(points, points, points)
def test_who_shares_more_bits_is_closer(target, a, b):
    if common_prefix(target, a) > common_prefix(target, b):
        assert target ^ a < target ^ b


@pytest.mark.parametrize("bits", [0, 1, 5, MAX_RANDOM_PREFIX])
def test_random_keys_share_exactly_the_bits_asked_for(bits):
    own = point(b"own")
    keys = {random_key(own, bits, random.Random(seed)) for seed in range(3)}
    assert len(keys) == 3
    assert {common_prefix(own, point(key)) for key in keys} == {bits}


def test_random_keys_with_too_many_given_bits_are_refused():
    with pytest.raises(ValueError, match="too long"):
        random_key(0, MAX_RANDOM_PREFIX + 1, random.Random(0))
