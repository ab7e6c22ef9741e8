"""Requests that are no requests: what tensor servers meet from peers broken or hostile."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.rpc.messages import PREFIX_BYTES, Request, encode_request
from p2pnode.rpc.schema import TensorMeta


@dataclass(frozen=True, slots=True)
class Spoilt:
    """What is sent in place of a request.

    Attributes:
        data: all of it.
        hangs_up: whether the sender resets the stream behind it, instead of ending it.
    """

    data: bytes
    hangs_up: bool = False


def _bits_flipped(rng: random.Random, request: Request, payload: bytes) -> Spoilt:
    header = bytearray(encode_request(request))
    for _ in range(rng.randint(1, 8)):
        header[rng.randrange(PREFIX_BYTES, len(header))] ^= 1 << rng.randrange(8)
    return Spoilt(bytes(header) + payload)


def _noise(rng: random.Random, _request: Request, _payload: bytes) -> Spoilt:
    size = rng.randrange(1, 400)
    return Spoilt(size.to_bytes(PREFIX_BYTES, "big") + rng.randbytes(size))


def _endless_header(rng: random.Random, _request: Request, _payload: bytes) -> Spoilt:
    return Spoilt(rng.randrange(2**20, 2**32).to_bytes(PREFIX_BYTES, "big"))


def _cut_short(rng: random.Random, request: Request, payload: bytes) -> Spoilt:
    whole = encode_request(request) + payload
    return Spoilt(whole[: rng.randrange(len(whole))], hangs_up=rng.random() < 0.5)


def _too_long(rng: random.Random, request: Request, payload: bytes) -> Spoilt:
    return Spoilt(encode_request(request) + payload + rng.randbytes(rng.randint(1, 2000)))


def _unknown_expert(_rng: random.Random, request: Request, payload: bytes) -> Spoilt:
    uid = replace(request.uid, name=f"{request.uid.name}.7")
    return Spoilt(encode_request(replace(request, uid=uid)) + payload)


def _wrong_shape(rng: random.Random, request: Request, _payload: bytes) -> Spoilt:
    meta = TensorMeta("float32", tuple(rng.randint(0, 9) for _ in range(rng.randint(0, 5))))
    data = encode_request(replace(request, tensors=(meta,)))
    return Spoilt(data + bytes(meta.nbytes % 4096))


def _vast_tensor(rng: random.Random, request: Request, payload: bytes) -> Spoilt:
    meta = TensorMeta("float32", (2 ** rng.randint(20, 40), request.tensors[0].shape[-1]))
    return Spoilt(encode_request(replace(request, tensors=(meta,))) + payload, hangs_up=True)


WAYS: Final[Mapping[str, Callable[[random.Random, Request, bytes], Spoilt]]] = {
    "bits flipped": _bits_flipped,
    "noise": _noise,
    "a header without end": _endless_header,
    "cut short": _cut_short,
    "bytes behind it": _too_long,
    "an unknown expert": _unknown_expert,
    "a wrong shape": _wrong_shape,
    "a vast tensor": _vast_tensor,
}
"""By name; each spoils a valid request, which has its payload behind it."""
