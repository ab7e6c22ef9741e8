import base64
import contextlib
import json
import math
import re

import base58
import biscuit_auth
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, example, given
from hypothesis import strategies as st

from p2pnode.errors import (
    InvalidKeyError,
    InvalidTokenError,
    InvalidUidError,
    NotAMemberError,
    PermissionDeniedError,
    TokenExpiredError,
    WrongRunError,
)
from p2pnode.security.tokens import (
    INVITE_PREFIX,
    MAX_TOKEN_BYTES,
    Membership,
    RunKey,
    attenuate,
    issue_invite,
    read_invite,
    verify_token,
)
from p2pnode.wire.keys import PrivateKey

NOW = 1_800_000_000.0
EXPIRES = NOW + 3600
KEY = RunKey.from_bytes(bytes(range(32)))
ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
BOB = PrivateKey.from_seed(b"b" * 32).peer_id


def member(scopes=("host", "train"), peer=ALICE, key=KEY, expires_at=EXPIRES):
    return Membership.accept(
        issue_invite(key, "digits", scopes=scopes, expires_at=expires_at), peer
    )


def with_block(token, code):
    """What a holder with the library could append."""
    root = biscuit_auth.PublicKey.from_bytes(
        base58.b58decode(KEY.run_id), biscuit_auth.Algorithm.Ed25519
    )
    biscuit = biscuit_auth.Biscuit.from_bytes(token, root)
    return bytes(biscuit.append(biscuit_auth.BlockBuilder(code)).to_bytes())


def invite_of(key, token):
    """The text of an invite that holds any token."""
    data = base58.b58decode(key.run_id) + token
    return INVITE_PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_run_key_survives_its_bytes_and_names_its_run():
    key = RunKey.generate()
    assert RunKey.from_bytes(key.to_bytes()).run_id == key.run_id


def test_a_run_id_is_the_ed25519_public_key_of_the_seed():
    other_library = Ed25519PrivateKey.from_private_bytes(KEY.to_bytes()).public_key()
    assert base58.b58decode(KEY.run_id) == other_library.public_bytes_raw()


@pytest.mark.parametrize("seed", [b"", b"x" * 31, b"x" * 33])
def test_a_run_key_of_the_wrong_size_is_refused(seed):
    with pytest.raises(InvalidKeyError, match="32 bytes"):
        RunKey.from_bytes(seed)


def test_an_invite_says_what_was_signed():
    text = issue_invite(KEY, "digits", scopes={"train"}, expires_at=EXPIRES + 0.7, peer=ALICE)
    invite = read_invite(f"  {text}\n")
    assert text.startswith(INVITE_PREFIX)
    assert (invite.name, invite.run_id, invite.scopes) == ("digits", KEY.run_id, {"train"})
    assert invite.expires_at == EXPIRES
    assert invite.peer == ALICE
    assert json.loads(json.dumps(invite.summary()))["peer"] == str(ALICE)


@pytest.mark.parametrize("scopes", [(), ("root",), ("host", "root")])
def test_an_invite_for_unknown_scopes_is_not_signed(scopes):
    with pytest.raises(InvalidTokenError, match="host and train"):
        issue_invite(KEY, "digits", scopes=scopes, expires_at=EXPIRES)


@pytest.mark.parametrize("expires_at", [math.inf, math.nan, 1e30])
def test_an_invite_without_a_real_expiry_is_not_signed(expires_at):
    with pytest.raises(InvalidTokenError, match="expire"):
        issue_invite(KEY, "digits", scopes=("train",), expires_at=expires_at)


def test_a_name_cannot_smuggle_facts_into_an_invite():
    with pytest.raises(InvalidUidError):
        issue_invite(KEY, 'digits"); scope("host', scopes=("train",), expires_at=EXPIRES)


# Where a biscuit of ours names the kind of its next key, Ed25519: a field of one byte and a value
# of zero. Under another field's number both are skipped, and Ed25519 is what is taken for granted.
KIND = bytes([0x08, 0x00, 0x12, 0x20])


@given(st.integers(0, 400), st.integers(1, 255))
@example(255, 16)  # the kind of a key, in the one field whose loss changes nothing
def test_an_invite_changed_anywhere_is_refused_or_says_the_same(at, change):
    text = issue_invite(KEY, "digits", scopes=("train",), expires_at=EXPIRES)
    data = bytearray(base64.urlsafe_b64decode(text.removeprefix(INVITE_PREFIX) + "=="))
    kind = data.index(KIND)
    data[at % len(data)] ^= change
    changed = INVITE_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")
    if at % len(data) == kind:
        with contextlib.suppress(InvalidTokenError):
            assert read_invite(changed).summary() == read_invite(text).summary()
        return
    with pytest.raises(InvalidTokenError):
        read_invite(changed)


@given(st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode().rstrip("=")))
def test_garbage_is_not_an_invite(text):
    for each in (text, INVITE_PREFIX + text):
        with pytest.raises(InvalidTokenError):
            read_invite(each)


def test_an_invite_for_one_node_cannot_be_accepted_by_another():
    text = issue_invite(KEY, "digits", scopes=("train",), expires_at=EXPIRES, peer=ALICE)
    with pytest.raises(InvalidTokenError, match=str(ALICE)):
        Membership.accept(text, BOB)
    token = attenuate(read_invite(text).biscuit, KEY.run_id, BOB)  # around our own check
    with pytest.raises(NotAMemberError):
        verify_token(token, KEY.run_id, BOB, "train", NOW)
    token = Membership.accept(text, ALICE).token
    assert verify_token(token, KEY.run_id, ALICE, "train", NOW) == EXPIRES


@pytest.mark.parametrize("operation", ["host", "train"])
def test_a_member_may_do_what_its_scopes_say(operation):
    token = member(scopes=(operation,)).token
    assert verify_token(token, KEY.run_id, ALICE, operation, NOW) == EXPIRES


def test_a_member_may_not_do_more_than_its_scopes_say():
    with pytest.raises(PermissionDeniedError, match="scope host"):
        verify_token(member(scopes=("train",)).token, KEY.run_id, ALICE, "host", NOW)


@pytest.mark.parametrize("late", [0, 1, 1e6])
def test_an_expired_token_is_refused(late):
    with pytest.raises(TokenExpiredError, match="new invite"):
        verify_token(member().token, KEY.run_id, ALICE, "train", EXPIRES + late)


def test_a_captured_token_is_useless_to_another_peer():
    token = member().token
    with pytest.raises(NotAMemberError, match="another node"):
        verify_token(token, KEY.run_id, BOB, "train", NOW)
    with pytest.raises(NotAMemberError, match="another node"):
        verify_token(attenuate(token, KEY.run_id, BOB), KEY.run_id, BOB, "train", NOW)


def test_an_invite_sent_as_a_token_is_refused():
    invite = read_invite(issue_invite(KEY, "digits", scopes=("train",), expires_at=EXPIRES))
    with pytest.raises(NotAMemberError, match="not bound"):
        verify_token(invite.biscuit, KEY.run_id, ALICE, "train", NOW)


def test_a_token_of_another_run_says_so():
    other = RunKey.generate()
    with pytest.raises(WrongRunError, match=other.run_id):
        verify_token(member(key=other).token, KEY.run_id, ALICE, "train", NOW)


def test_a_token_that_claims_a_run_it_was_not_signed_by_is_refused():
    thief = RunKey.generate()
    thief.run_id = KEY.run_id  # the facts name the real run, the signature is the thief's
    block = biscuit_auth.BiscuitBuilder(
        f'run("{KEY.run_id}"); scope("train"); check if peer("{ALICE}");'
    )
    with pytest.raises(NotAMemberError, match="not signed") as caught:
        verify_token(thief.sign(block), KEY.run_id, ALICE, "train", NOW)
    assert type(caught.value) is NotAMemberError


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("check if time($t), $t < 2020-01-01T00:00:00Z", TokenExpiredError),
        ('check if operation("host")', PermissionDeniedError),
        ('check if peer("somebody")', NotAMemberError),
        ("check if unheard_of(1)", NotAMemberError),
    ],
)
def test_checks_a_holder_appended_are_honoured(code, error):
    token = with_block(member().token, code)
    with pytest.raises(error):
        verify_token(token, KEY.run_id, ALICE, "train", NOW)


# Each would cost the library minutes to hours, its limit of time notwithstanding.
JOIN = "".join(f"a({n});" for n in range(60)) + "check if a($u), a($v), a($w), a($x), $u == 99"


@pytest.mark.parametrize(
    "code",
    [
        'scope("host")',
        f'peer("{BOB}"); operation("train")',
        "expires(2999-01-01T00:00:00Z)",
        f'note("check if peer(\\"{ALICE}\\");")',
        'right("a") <- operation("train")',
        "check if operation($o), scope($o), scope($p)",
        'check if operation("train") or operation("host")',
        'reject if operation("host")',
        'check all operation("train")',
        'check if operation("train") trusting previous',
        f'check if peer("{ALICE}"), time($t)',
        "check if time($t), $t < 2999-01-01T00:00:00Z, $t != 2020-01-01T00:00:00Z",
        JOIN,
    ],
)
def test_a_block_of_a_holder_may_hold_plain_checks_only(code):
    token = with_block(member().token, code)
    with pytest.raises(NotAMemberError, match="rules that tokens of runs do not have"):
        verify_token(token, KEY.run_id, ALICE, "train", NOW)


def test_a_stranger_cannot_keep_a_host_busy_with_a_run_of_his_own():
    stranger = RunKey.generate()
    token = stranger.sign(biscuit_auth.BiscuitBuilder(f'{JOIN}; check if peer("{ALICE}")'))
    with pytest.raises(NotAMemberError, match="rules that tokens of runs do not have"):
        verify_token(token, stranger.run_id, ALICE, "host", NOW)
    with pytest.raises(InvalidTokenError):
        read_invite(invite_of(stranger, token))


@pytest.mark.parametrize(
    "code",
    ['check if operation("train")', "check if time($now), $now <= 2999-01-01T00:00:00Z"],
)
def test_a_token_may_be_narrowed_further(code):
    token = with_block(member().token, code)
    assert verify_token(token, KEY.run_id, ALICE, "train", NOW) == EXPIRES


def test_a_block_has_a_bounded_number_of_checks():
    token = with_block(member().token, ";".join(['check if operation("train")'] * 17))
    with pytest.raises(NotAMemberError, match="rules that tokens of runs do not have"):
        verify_token(token, KEY.run_id, ALICE, "train", NOW)


@given(st.binary(max_size=600))
def test_garbage_is_not_a_token(data):
    with pytest.raises(NotAMemberError):
        verify_token(data, KEY.run_id, ALICE, "train", NOW)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_token_changed_anywhere_is_refused(at, change):
    token = bytearray(member().token)
    at %= len(token)
    assume(at not in [found.start() for found in re.finditer(re.escape(KIND), token)])
    token[at] ^= change
    with pytest.raises(NotAMemberError):
        verify_token(bytes(token), KEY.run_id, ALICE, "train", NOW)


def test_an_oversized_token_is_refused_unread():
    with pytest.raises(NotAMemberError, match="not accepted"):
        verify_token(bytes(MAX_TOKEN_BYTES + 1), KEY.run_id, ALICE, "train", NOW)


def test_a_token_of_endless_blocks_is_refused():
    token = member().token
    for number in range(7):
        token = with_block(token, f"note({number})")
    with pytest.raises(NotAMemberError, match="blocks"):
        verify_token(token, KEY.run_id, ALICE, "train", NOW)


@pytest.mark.parametrize("run_id", ["open:digits", "digits", "", "0OIl", "1" * 32])
def test_no_token_opens_a_run_without_a_key(run_id):
    with pytest.raises(NotAMemberError):
        verify_token(member().token, run_id, ALICE, "train", NOW)


def test_a_membership_survives_json():
    for each in (member(), Membership.open("digits")):
        assert Membership.from_json(json.loads(json.dumps(each.to_json()))) == each
        assert "token" not in json.dumps(each.summary())
    assert Membership.open("digits").is_open
    assert not member().is_open


@pytest.mark.parametrize(
    "change", [{"token": None}, {"token": "!"}, {"run_id": "a b"}, {"run_id": "open:digits"}]
)
def test_a_damaged_membership_is_refused(change):
    with pytest.raises(ValueError):  # noqa: PT011  # the caller names the file it came from
        Membership.from_json(member().to_json() | change)
