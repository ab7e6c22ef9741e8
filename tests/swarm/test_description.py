import math
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import HostingSettings, RoundsSettings
from p2pnode.errors import ConfigError, InvalidUidError, ProtocolError
from p2pnode.security.tokens import RunKey, open_run_id
from p2pnode.swarm.description import (
    MAX_BYTES,
    MAX_OPTIONS,
    MAX_PATTERNS,
    NAMESPACE,
    DescriptionValidator,
    Kind,
    RunDescription,
    agreed,
    agreed_rounds,
    key_of,
    open_description,
    seal_description,
)
from p2pnode.wire.envelope import signed_bytes
from p2pnode.wire.uids import Uid

KEY = RunKey.from_bytes(bytes(range(32)))
OTHER = RunKey.from_bytes(bytes(32))
DESCRIPTION = RunDescription(
    run_id=KEY.run_id,
    sequence=1_700_000_000_000,
    kind=Kind.LAYERS,
    patterns=("blocks.[0:3]",),
    options={"layer": "decoder", "learning_rate": 0.5, "clip_grad_norm": 1, "x": True},
)
BODY = [
    1_700_000_000_000,
    "layers",
    ["blocks.[0:3]"],
    {"clip_grad_norm": 1, "layer": "decoder", "learning_rate": 0.5, "x": True},
]


def _signed(body, key=KEY, run_id=KEY.run_id):
    packed = msgpack.packb(body)
    return msgpack.packb([packed, key.signer.sign(signed_bytes(NAMESPACE, key_of(run_id), packed))])


def _changed(position, value):
    return _signed([value if n == position else each for n, each in enumerate(BODY)])


def test_a_description_reads_back_and_lists_its_units_in_order():
    sealed = seal_description(KEY, DESCRIPTION)
    assert sealed == _signed(BODY)
    read = open_description(KEY.run_id, sealed)
    assert read == DESCRIPTION
    assert read.units() == [Uid(KEY.run_id, f"blocks.{n}") for n in range(3)]


def test_a_description_has_the_bytes_it_always_had():
    sealed = seal_description(KEY, replace(DESCRIPTION, options={"hidden_dim": 64}))
    assert sealed.hex() == (
        "92c42c"  # the body: sequence, kind, patterns, options
        "94cf0000018bcfe56800a66c617965727391ac626c6f636b732e5b303a335d81aa68696464656e5f64696d40"
        "c440af12b5f4d57ae8893f7f7ca94426e200e67052c797dcc6a4b16f12b0fc0c2c2d"
        "052412ee4d43804cc52de110dcebba266a4ba43f6d8dbe77eabdccdb3e731c07"
    )


@given(
    st.integers(0, 2**53 - 1),
    st.sampled_from(Kind),
    st.dictionaries(
        st.from_regex(r"([A-Za-z_][a-z-]{0,9}:)?[a-z][a-z0-9_]{0,20}", fullmatch=True),
        st.booleans()
        | st.integers(-(2**52), 2**52)
        | st.floats(-1e9, 1e9)
        | st.text("abc /.-", max_size=40),
        max_size=8,
    ),
)
def test_every_description_reads_back(sequence, kind, options):
    description = replace(DESCRIPTION, sequence=sequence, kind=kind, options=options)
    assert open_description(KEY.run_id, seal_description(KEY, description)) == description


@pytest.mark.parametrize(
    "sealed",
    [
        _changed(0, -1),
        _changed(0, 2**53),
        _changed(0, 1.5),
        _changed(0, True),
        _changed(1, "things"),
        _changed(2, ["blocks.0"] * (MAX_PATTERNS + 1)),
        _changed(2, [1]),
        _changed(2, ["blocks"]),
        _changed(2, ["blocks.[0:5000]"]),
        _changed(2, ["blocks.0.0"]),  # two coordinates: no layer
        _changed(2, ["other/blocks.0"]),
        _changed(3, {"": 1}),
        _changed(3, {1: 1}),
        _changed(3, {":a": 1}),
        _changed(3, {"wide:": 1}),
        _changed(3, {"a:b:c": 1}),
        _changed(3, {"rounds.wide:mode": 1}),
        _changed(3, {"a": None}),
        _changed(3, {"a": [1]}),
        _changed(3, {"a": math.nan}),
        _changed(3, {"a": math.inf}),
        _changed(3, {"a": "\x1b[2J"}),
        _changed(3, {"a": "x" * 257}),
        _changed(3, {f"a{n}": 1 for n in range(MAX_OPTIONS + 1)}),
        _changed(3, {f"a{n}": "x" * 200 for n in range(MAX_BYTES // 200)}),
        _signed(BODY[:-1]),
        _signed([*BODY, 0]),
        _signed({}),
        _signed(BODY, OTHER),
        _signed(BODY, run_id=OTHER.run_id),
        msgpack.packb([msgpack.packb(BODY), bytes(64)]),
        msgpack.packb([msgpack.packb(BODY)]),
        b"\xdc\x00\x02" + _signed(BODY)[1:],
        b"\xc1",
        b"",
    ],
)
def test_a_malformed_description_is_refused(sealed):
    with pytest.raises(ProtocolError):
        open_description(KEY.run_id, sealed)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_a_changed_description_is_never_taken_for_another(garbage, position, flip):
    sealed = bytearray(seal_description(KEY, DESCRIPTION))
    sealed[position % len(sealed)] ^= flip
    for data in (bytes(sealed), seal_description(KEY, DESCRIPTION) + (garbage or b"\0"), garbage):
        with pytest.raises(ProtocolError):
            open_description(KEY.run_id, data)


def test_only_the_owner_describes_and_only_what_there_can_be():
    with pytest.raises(ValueError, match="owner"):
        seal_description(OTHER, DESCRIPTION)
    with pytest.raises(InvalidUidError, match="one coordinate"):
        seal_description(KEY, replace(DESCRIPTION, patterns=("ffn.[0:2].[0:2]",)))
    experts = replace(DESCRIPTION, kind=Kind.EXPERTS, patterns=("ffn.[0:2].[0:2]",))
    assert len(experts.units()) == 4
    assert open_description(KEY.run_id, seal_description(KEY, experts)) == experts


def test_the_newest_description_counts_in_whatever_order_they_come():
    validator, key = DescriptionValidator(), key_of(KEY.run_id)
    values = [seal_description(KEY, replace(DESCRIPTION, sequence=number)) for number in (7, 9, 8)]
    for value in values:
        validator.validate(key, value, 0.0)
    assert validator.merge(key, values, 0.0) == values[1]
    assert validator.merge(key, values[::-1], 0.0) == values[1]
    assert validator.expires(key, values[0]) is None


@pytest.mark.parametrize(
    "key", [b"/p2pnode-run/", b"/p2pnode-run/a/b", b"/p2pnode-run/\xff", key_of(OTHER.run_id)]
)
def test_a_description_stands_under_its_runs_key_only(key):
    with pytest.raises(ProtocolError):
        DescriptionValidator().validate(key, seal_description(KEY, DESCRIPTION), 0.0)


def test_an_open_run_has_no_description():
    with pytest.raises(ProtocolError, match="no owner"):
        open_description(open_run_id("digits"), seal_description(KEY, DESCRIPTION))


def _agreed(options, **own):
    return agreed(HostingSettings(**own), replace(DESCRIPTION, options=options))


def test_the_owners_options_count_for_all_and_the_rest_is_each_hosts_own():
    settings = _agreed(
        {"learning_rate": 1, "optimizer": "sgd", "layer": "transformer"},
        learning_rate=0.5,
        device="cuda:1",
        max_queued_calls=7,
    )
    assert settings == HostingSettings(
        learning_rate=1.0,
        optimizer="sgd",
        layer="transformer",
        device="cuda:1",
        max_queued_calls=7,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cpu"}, "update p2pnode"),
        ({"threads": 1}, "update p2pnode"),
        ({"learning_rate": "fast"}, "must be a number"),
        ({"beta1": 1.5}, "below 1"),
        ({"layer": "os:system"}, "with --layer"),
        ({"layer": "layers.py:Mine"}, "with --layer"),
        ({"model": "/etc"}, "with --model"),
        ({"model": "../weights"}, "with --model"),
        ({"model": 3}, "with --model"),
    ],
)
def test_what_an_owner_cannot_choose_for_others_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        _agreed(options)


def test_the_owner_chooses_the_rounds_of_all_participants_beside_what_hosts_use():
    both = replace(
        DESCRIPTION, options={"rounds.mode": "average", "rounds.samples": 7, "learning_rate": 0.5}
    )
    read = open_description(KEY.run_id, seal_description(KEY, both))
    assert agreed_rounds(RoundsSettings(max_checked=3), read) == RoundsSettings(
        mode="average", samples=7, max_checked=3
    )
    assert agreed(HostingSettings(), read) == HostingSettings(learning_rate=0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rounds.max_checked": 99}, "update p2pnode"),
        ({"rounds.mode": "fastest"}, "one of best"),
        ({"rounds.threshold": 2}, "part of 1"),
    ],
)
def test_what_an_owner_cannot_choose_for_participants_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        agreed_rounds(RoundsSettings(), replace(DESCRIPTION, options=options))


def test_a_host_keeps_its_own_copy_of_code_and_weights():
    assert _agreed({"model": "tiny"}, model="/data/tiny").model == "/data/tiny"
    assert _agreed({"layer": "mine.py:A"}, layer="yours.py:B").layer == "yours.py:B"
    assert _agreed({"model": "tiny"}, model="small").model == "tiny"


@pytest.mark.parametrize(
    ("options", "own", "expected"),
    [
        ({"wide:layer": "linear"}, "mine.py:A", "linear"),
        ({"wide:layer": "linear", "layer": "ffn"}, "mine.py:A", "linear"),
        ({"wide:layer": "linear"}, "wide=mine.py:A", "mine.py:A"),
        ({"wide:layer": "linear"}, "wide=nop", "linear"),
        ({"layer": "linear"}, "mine.py:A", "mine.py:A"),
        ({"layer": "linear"}, "narrow=mine.py:A", "linear"),
        ({"wide:layer": "yours:A", "layer": "ffn"}, "mine.py:A", "mine.py:A"),
        ({"wide:layer": "yours:A"}, "linear, wide=mine.py:A", "mine.py:A"),
        ({"wide:layer": "yours:A"}, "narrow=mine.py:B,wide=mine.py:C", "mine.py:C"),
        ({"narrow:layer": "linear"}, "mine.py:A", "mine.py:A"),
        ({}, "narrow=mine.py:B,nop", "nop"),
        ({}, "narrow=mine.py:B", "ffn"),
    ],
)
def test_a_layer_class_of_ones_own_counts_where_the_owner_names_no_other_for_the_block(
    options, own, expected
):
    said = replace(DESCRIPTION, options=options)
    assert agreed(HostingSettings(layer=own), said, "wide").layer == expected


def test_the_class_of_another_block_is_not_taken_for_that_of_this_one():
    said = replace(
        DESCRIPTION, options={"wide:layer": "theirs.py:Wide", "narrow:layer": "t:Narrow"}
    )
    own = HostingSettings(layer="mine.py:Narrow")
    assert agreed(own, said, "narrow").layer == "mine.py:Narrow"
    with pytest.raises(ConfigError, match="copy with --layer wide=…"):
        agreed(own, said, "wide")


def test_units_with_a_layer_of_their_own_are_no_blocks_of_the_model():
    said = replace(DESCRIPTION, options={"model": "tiny", "wide:layer": "linear"})
    for own in ("", "/data/tiny"):
        settings = HostingSettings(model=own)
        assert agreed(settings, said, "wide").model == ""
        assert agreed(settings, said, "blocks").model == (own or "tiny")
    said = replace(DESCRIPTION, options={"blocks:model": "tiny"})
    assert agreed(HostingSettings(model="/data/tiny"), said, "blocks").model == "/data/tiny"
    assert agreed(HostingSettings(model="/data/other"), said, "blocks").model == "tiny"


@pytest.mark.parametrize("layer", ["", "wide=", "a,b", "wide=a,wide=b", "wide=a,"])
def test_a_layer_that_is_none_or_two_is_refused(layer):
    with pytest.raises(ConfigError, match="one for each block"):
        HostingSettings(layer=layer)


def test_a_setting_of_one_block_counts_for_its_units_and_more_than_that_of_all():
    options = {"wide:learning_rate": 0.5, "hidden_dim": 8, "learning_rate": 0.25, "wide:seed": 3}
    said = replace(DESCRIPTION, options=options)
    read = open_description(KEY.run_id, seal_description(KEY, said))
    own = HostingSettings(seed=1)
    assert agreed(own, read, "wide") == HostingSettings(seed=3, hidden_dim=8, learning_rate=0.5)
    assert agreed(own, read, "blocks") == HostingSettings(seed=1, hidden_dim=8, learning_rate=0.25)
    assert agreed(own, read) == agreed(own, read, "blocks")
    assert agreed_rounds(RoundsSettings(), read) == RoundsSettings()


def test_without_a_word_of_the_owner_all_settings_are_the_hosts_own():
    assert agreed(HostingSettings(seed=7), None, "wide") == HostingSettings(seed=7)


def test_an_owner_may_set_options_alone():
    alone = replace(DESCRIPTION, patterns=())
    assert open_description(KEY.run_id, seal_description(KEY, alone)) == alone
    assert alone.units() == []
