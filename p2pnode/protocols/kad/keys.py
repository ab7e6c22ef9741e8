"""The key space: sha256 of a key or peer id, compared by XOR.

Source: libp2p/specs, kad-dht, "Distance". Points of the space are integers below 2**256, so that
a distance is one `^` and comparing distances is comparing integers.
"""

import functools
import hashlib
import random
from typing import Final

KEY_BITS: Final = 256
MAX_RANDOM_PREFIX: Final = 12  # finding a key of n given bits takes about 2**n hashes: 4 ms for 12


@functools.lru_cache(maxsize=65_536)
def point(key: bytes) -> int:
    """Return where a key, or a peer by its id, lies in the key space."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def common_prefix(a: int, b: int) -> int:
    """Count the leading bits that two points share (0 to 256)."""
    return KEY_BITS - (a ^ b).bit_length()


def random_key(own: int, shared_bits: int, rng: random.Random) -> bytes:
    """Find a key whose point shares exactly `shared_bits` leading bits with `own`.

    A look-up sends the key and not its point, so the key is found by trying.

    Raises:
        ValueError: more than `MAX_RANDOM_PREFIX` bits are asked for.
    """
    if not 0 <= shared_bits <= MAX_RANDOM_PREFIX:
        raise ValueError(f"keys with {shared_bits} given bits take too long to find")
    while True:
        key = rng.randbytes(32)
        if common_prefix(own, int.from_bytes(hashlib.sha256(key).digest(), "big")) == shared_bits:
            return key
