import pytest

from p2pnode.errors import (
    NotAMemberError,
    PermissionDeniedError,
    TokenExpiredError,
    WrongRunError,
)
from p2pnode.rpc import authority as authority_module
from p2pnode.rpc.authority import RECHECK_INTERVAL, Authority
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.wire.keys import PrivateKey

NOW = 1_800_000_000.0
KEY = RunKey.from_bytes(bytes(range(32)))
HOST, ALICE, BOB = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"h", b"a", b"b"))


def member(peer_id, *, key=KEY, scopes=("train",), lifetime=3600.0):
    invite = issue_invite(key, "digits", scopes=scopes, expires_at=NOW + lifetime)
    return Membership.accept(invite, peer_id)


@pytest.fixture
def authority():
    return Authority({"digits": member(HOST), "games": Membership.open("games")}, cache_size=2)


@pytest.fixture
def verified(monkeypatch):
    """The peers whose tokens were really verified, in order."""
    seen = []
    verify = authority_module.verify_token

    def count(token, run_id, peer_id, operation, now):
        seen.append(peer_id)
        return verify(token, run_id, peer_id, operation, now)

    monkeypatch.setattr(authority_module, "verify_token", count)
    return seen


def test_a_token_is_shown_and_verified_once(authority, verified):
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW)
    for _ in range(3):
        authority.authorise(ALICE, KEY.run_id, None, "train", NOW + 1)
    assert verified == [ALICE]


def test_a_peer_without_a_token_is_refused(authority):
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW)
    with pytest.raises(NotAMemberError, match="ask its owner"):
        authority.authorise(BOB, KEY.run_id, None, "train", NOW)


def test_a_captured_token_is_refused(authority):
    token = member(ALICE).token
    authority.authorise(ALICE, KEY.run_id, token, "train", NOW)
    with pytest.raises(NotAMemberError):
        authority.authorise(BOB, KEY.run_id, token, "train", NOW)


def test_a_verdict_for_one_operation_is_none_for_another(authority):
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW)
    with pytest.raises(NotAMemberError):
        authority.authorise(ALICE, KEY.run_id, None, "host", NOW)
    with pytest.raises(PermissionDeniedError):
        authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "host", NOW)


def test_a_verdict_ends_with_the_token(authority):
    authority.authorise(ALICE, KEY.run_id, member(ALICE, lifetime=10).token, "train", NOW)
    authority.authorise(ALICE, KEY.run_id, None, "train", NOW + 9)
    with pytest.raises(TokenExpiredError):
        authority.authorise(ALICE, KEY.run_id, None, "train", NOW + 10)
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW + 10)


def test_a_verdict_is_looked_at_again_after_a_while(authority, verified):
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW)
    authority.authorise(ALICE, KEY.run_id, None, "train", NOW + RECHECK_INTERVAL)
    assert verified == [ALICE, ALICE]


def test_a_bad_token_does_not_take_a_good_ones_verdict_away(authority):
    authority.authorise(ALICE, KEY.run_id, member(ALICE).token, "train", NOW)
    with pytest.raises(NotAMemberError):
        authority.authorise(ALICE, KEY.run_id, b"garbage", "train", NOW)
    authority.authorise(ALICE, KEY.run_id, None, "train", NOW)


def test_another_run_is_refused_by_name(authority):
    other = RunKey.generate()
    with pytest.raises(WrongRunError, match=other.run_id):
        authority.authorise(ALICE, other.run_id, member(ALICE, key=other).token, "train", NOW)
    with pytest.raises(WrongRunError):
        authority.authorise(ALICE, KEY.run_id, member(ALICE, key=other).token, "train", NOW)


def test_an_open_run_takes_everybody_but_no_other_open_run(authority):
    authority.authorise(BOB, "open:games", None, "train", NOW)
    with pytest.raises(WrongRunError):
        authority.authorise(BOB, "open:digits", None, "train", NOW)


def test_the_least_recently_used_verdict_is_forgotten_first(authority, verified):
    carol = PrivateKey.from_seed(b"c" * 32).peer_id
    for peer_id in (ALICE, BOB):
        authority.authorise(peer_id, KEY.run_id, member(peer_id).token, "train", NOW)
    authority.authorise(ALICE, KEY.run_id, None, "train", NOW)
    authority.authorise(carol, KEY.run_id, member(carol).token, "train", NOW)
    authority.authorise(ALICE, KEY.run_id, None, "train", NOW)
    with pytest.raises(NotAMemberError):
        authority.authorise(BOB, KEY.run_id, None, "train", NOW)
    assert verified == [ALICE, BOB, carol]
