"""What may stand under a key: each namespace of the DHT has a validator.

A key is `/<namespace>/<rest>`. Keys of no or an unknown namespace are refused, as go- and
js-libp2p do. Source: libp2p/specs, kad-dht, "Entry validation".
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId


class Validator(ABC):
    """The rules of one namespace; pure, `now` is the wall clock's.

    Attributes:
        share: how much of a node's store the namespace may fill, between 0 and 1.
        is_renewed: whether values are stored again so often that copies of which those who store
            them know nothing, kept beside the way of a look-up, would only go stale.
    """

    share: float = 1.0
    is_renewed: bool = False

    @abstractmethod
    def validate(self, key: bytes, value: bytes, now: float) -> None:
        """Check that `value` may stand under `key`.

        Raises:
            ProtocolError: it may not.
        """

    @abstractmethod
    def merge(self, key: bytes, values: Sequence[bytes], now: float) -> bytes:
        """Join valid values of one key: their union where values add up, the best one elsewhere.

        The result depends neither on the order of the values nor on how often each appears, and
        merging results gives what merging everything at once would. Nothing left is `b""`.
        """

    @abstractmethod
    def expires(self, key: bytes, value: bytes) -> float | None:
        """Return when a valid value ends by its own word, on the wall clock, or None."""

    def lacks(self, key: bytes, held: bytes | None, best: bytes, now: float) -> bool:  # noqa: ARG002  # for overriding
        """Tell whether the holder of `held` should be sent `best`, merged from it and others."""
        return held != best


class PublicKeyValidator(Validator):
    """`/pk/<peer id>`: the peer's public key, for ids that do not hold it themselves."""

    NAMESPACE = "pk"

    share = 0.1  # anybody can make keys by the million

    def validate(self, key: bytes, value: bytes, now: float) -> None:  # noqa: ARG002  # keys last
        """See `Validator`."""
        try:
            peer_id = PeerId(key.removeprefix(b"/pk/"))
            owner = PublicKey.from_bytes(value).peer_id
        except InvalidKeyError as error:
            raise ProtocolError(f"a public key record is malformed: {error}") from error
        if owner != peer_id:
            raise ProtocolError("a public key record holds the key of another peer")

    def merge(self, key: bytes, values: Sequence[bytes], now: float) -> bytes:  # noqa: ARG002
        """See `Validator`: all encodings of the one key are equal, the smallest is kept."""
        return min(values)

    def expires(self, key: bytes, value: bytes) -> float | None:  # noqa: ARG002  # keys last
        """See `Validator`."""
        return None


def namespace_of(key: bytes) -> str:
    """Return the namespace of a key, or nothing where it has none."""
    parts = key.split(b"/", 2)
    return parts[1].decode("ascii", "replace") if len(parts) == 3 and not parts[0] else ""


def validator_of(key: bytes, validators: Mapping[str, Validator]) -> Validator:
    """Find the validator of a key's namespace.

    Raises:
        ProtocolError: the key has none that is known.
    """
    name = namespace_of(key)
    if name not in validators:
        raise ProtocolError("a DHT key is of no namespace that this node knows")
    return validators[name]
