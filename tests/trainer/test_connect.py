import socket
import threading

import pytest

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.errors import (
    ConfigError,
    InvalidAddressError,
    InvalidTokenError,
    NoPeersError,
    PermissionDeniedError,
    TokenExpiredError,
)
from p2pnode.security.tokens import RunKey, issue_invite
from p2pnode.trainer.connect import Callers, Trainer, connect
from p2pnode.wire.keys import PrivateKey

PEER = PrivateKey.from_seed(bytes(32)).peer_id
NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"


def invite(*, name="digits", scopes=("train",), lasts=86400.0, peer=None):
    expires_at = int(wall_time()) + lasts
    return issue_invite(RunKey.generate(), name, scopes=scopes, expires_at=expires_at, peer=peer)


@pytest.mark.parametrize(
    ("bootstrap", "options", "error", "sentence"),
    [
        ([], {}, ConfigError, "address of a node"),
        ("/ip4/127.0.0.1/tcp/1", {}, InvalidAddressError, "/p2p/"),
        ("nonsense", {}, InvalidAddressError, "nonsense"),
        (NOWHERE, {"invite": "nonsense"}, InvalidTokenError, "not an invite"),
        (NOWHERE, {"invite": invite(name="other")}, ConfigError, "run other, not digits"),
        (NOWHERE, {"invite": invite(lasts=-10)}, TokenExpiredError, "new one"),
        (NOWHERE, {"invite": invite(peer=PEER)}, InvalidTokenError, str(PEER)),
        (NOWHERE, {"invite": invite(scopes=["host"])}, PermissionDeniedError, "scope train"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_started(bootstrap, options, error, sentence):
    threads = threading.active_count()
    with pytest.raises(error, match=sentence), connect(bootstrap, run="digits", **options):
        pass
    assert threading.active_count() == threads


def test_an_invite_that_names_a_trainer_is_accepted_with_its_key():
    key = PrivateKey.from_seed(bytes([1]) * 32)
    settings = Settings().replace(node={"bootstrap_timeout": 0.001})
    named = invite(peer=key.peer_id)
    with (
        pytest.raises(NoPeersError),  # the invite is read before anybody is dialled
        connect(NOWHERE, run="digits", invite=named, key=key, settings=settings),
    ):
        pass


@pytest.mark.real
def test_an_unreachable_bootstrap_node_is_named_and_no_thread_stays():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER}"
    with pytest.raises(NoPeersError, match=str(port)), connect(address, run="digits"):
        pass
    assert not [each for each in threading.enumerate() if each.name.startswith("p2pnode")]


@pytest.mark.real
def test_a_silent_bootstrap_node_is_given_up_on_in_time():
    settings = Settings().replace(node={"bootstrap_timeout": 0.5})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER}"
        with (
            pytest.raises(NoPeersError, match=r"0\.5 s"),
            connect(address, run="digits", settings=settings),
        ):
            pass


@pytest.mark.parametrize("named", [None, "float16"])
def test_a_layer_travels_as_it_says_or_as_the_settings_do(named):
    settings = Settings().replace(trainer={"codec": "bfloat16"})
    trainer = Trainer(None, Callers(None, None), settings)
    layers = [
        trainer.expert("ffn.0.0", codec=named),
        trainer.mixture_of_experts("ffn", grid=(2, 2), in_features=8, codec=named),
    ]
    for layer in layers:
        for policy in (layer._forward_policy, layer._backward_policy):
            assert policy.codec == (named or "bfloat16")
    with pytest.raises(ConfigError, match="one of none, float16"):
        trainer.expert("ffn.0.0", codec="zip")
