import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.kad.validators import PublicKeyValidator, validator_of
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

KEY = PrivateKey.from_seed(bytes(32)).public_key
VALIDATORS = {"pk": PublicKeyValidator()}


def test_a_public_key_may_stand_under_its_own_peer_id_alone():
    validator = validator_of(b"/pk/" + KEY.peer_id, VALIDATORS)
    validator.validate(b"/pk/" + KEY.peer_id, KEY.protobuf, 0.0)
    other = PrivateKey.from_seed(b"\1" * 32).public_key.peer_id
    for key in (b"/pk/" + other, b"/pk/", b"/pk/" + bytes(PeerId(KEY.peer_id))[:-1]):
        with pytest.raises(ProtocolError):
            validator.validate(key, KEY.protobuf, 0.0)
    with pytest.raises(ProtocolError):
        validator.validate(b"/pk/" + KEY.peer_id, KEY.protobuf[:-1], 0.0)


def test_public_keys_do_not_expire_and_need_no_update_when_equal():
    validator = PublicKeyValidator()
    assert validator.expires(b"", KEY.protobuf) is None
    assert validator.merge(b"", [KEY.protobuf, KEY.protobuf], 0.0) == KEY.protobuf
    assert validator.lacks(b"", None, KEY.protobuf, 0.0)
    assert not validator.lacks(b"", KEY.protobuf, KEY.protobuf, 0.0)


@pytest.mark.parametrize("key", [b"", b"/", b"/pk", b"pk/x", b"x/pk/y", b"/ipns/x", b"/\xff/x"])
def test_keys_of_no_known_namespace_are_refused(key):
    with pytest.raises(ProtocolError, match="namespace"):
        validator_of(key, VALIDATORS)
