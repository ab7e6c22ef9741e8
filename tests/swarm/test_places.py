import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.swarm.places import (
    MAX_SHARD,
    SPAN,
    Kind,
    Place,
    bits_of,
    by_place,
    host_place,
    place_of,
    shards,
)
from p2pnode.wire.uids import MAX_COORDINATE, Uid, expand

RUN = "open:digits"


def test_keys_are_what_they_always_were():
    assert Place(RUN, Kind.HOSTS, "ffn.3", 1).key == b"/p2pnode-index/open:digits/hosts/ffn.3/1"
    assert Place("7Zb1", Kind.BRANCHES, "ffn", 0).key == b"/p2pnode-index/7Zb1/branches/ffn/0"
    assert Place(RUN, Kind.LOADING, "ffn.3", 1).key == b"/p2pnode-index/open:digits/loading/ffn.3/1"


def test_what_is_being_loaded_makes_no_branch_alive():
    hosted, loading = Uid(RUN, "ffn.0.1"), Uid(RUN, "ffn.5.2")
    assert by_place([hosted], [loading]) == {
        Place(RUN, Kind.BRANCHES, "ffn", 0): 1 << 0,
        Place(RUN, Kind.HOSTS, "ffn.0", 0): 1 << 1,
        Place(RUN, Kind.LOADING, "ffn.5", 0): 1 << 2,
    }


@given(
    st.sampled_from([RUN, "7Zb1"]),
    st.sampled_from(Kind),
    st.sampled_from(["ffn", "ffn.0", "a-b.17.4"]),
    st.integers(0, MAX_SHARD),
)
def test_a_key_reads_back(run_id, kind, prefix, shard):
    place = Place(run_id, kind, prefix, shard)
    assert place_of(place.key) == place


@pytest.mark.parametrize(
    "key",
    [
        b"/p2pnode-index/open:digits/hosts/ffn",
        b"/p2pnode-index/open:digits/hosts/ffn/0/0",
        b"/p2pnode-index/open:digits/others/ffn/0",
        b"/p2pnode-index/open:digits/hosts/ffn/",
        b"/p2pnode-index/open:digits/hosts/ffn/00",
        b"/p2pnode-index/open:digits/hosts/ffn/+1",
        b"/p2pnode-index/open:digits/hosts/ffn/-1",
        f"/p2pnode-index/open:digits/hosts/ffn/{MAX_SHARD + 1}".encode(),
        b"/p2pnode-index/open:digits/hosts/ffn.01/0",
        b"/p2pnode-index/open:digits/hosts/\xff/0",
        b"/p2pnode-index/run with spaces/hosts/ffn/0",
        b"/p2pnode-other/open:digits/hosts/ffn/0",
        b"",
    ],
)
def test_other_keys_are_refused(key):
    with pytest.raises(ProtocolError):
        place_of(key)


def test_an_expert_is_listed_with_its_hosts_and_in_each_branch_above():
    far = SPAN + 5
    assert by_place([Uid(RUN, f"ffn.3.{far}.1"), Uid(RUN, f"ffn.3.{far}.0")]) == {
        Place(RUN, Kind.BRANCHES, "ffn", 0): 1 << 3,
        Place(RUN, Kind.BRANCHES, "ffn.3", 1): 1 << 5,
        Place(RUN, Kind.HOSTS, f"ffn.3.{far}", 0): 0b11,
    }
    assert host_place(Uid(RUN, f"ffn.{far}")) == Place(RUN, Kind.HOSTS, "ffn", 1)
    assert host_place(Uid(RUN, f"ffn.{MAX_COORDINATE}")).shard == MAX_SHARD


def test_sixteen_experts_of_one_row_take_two_records():
    assert len(by_place(expand("ffn.7.[16:32]", RUN))) == 2


def test_a_prefix_has_a_record_for_each_span_of_coordinates():
    assert [each.shard for each in shards(RUN, Kind.HOSTS, "ffn", SPAN)] == [0]
    assert [each.shard for each in shards(RUN, Kind.HOSTS, "ffn", SPAN + 1)] == [0, 1]


@given(st.sets(st.integers(0, SPAN - 1)))
def test_sets_of_coordinates_read_back(coordinates):
    mask = sum(1 << each for each in coordinates)
    assert list(bits_of(mask)) == sorted(coordinates)
