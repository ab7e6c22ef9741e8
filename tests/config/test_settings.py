import pytest

from p2pnode.config import Settings
from p2pnode.config.checks import _LEAST, _MAY_BE_ZERO
from p2pnode.errors import ConfigError


def load(**arguments):
    return Settings.load(environ=arguments.pop("environ", {}), **arguments)


def test_defaults_are_valid():
    assert load() == Settings()


def test_flags_win_over_environment_over_file(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(
        '[hosting]\nhidden_dim = 1\nthreads = 2\n[node]\nlisten = ["/ip4/1.2.3.4/tcp/1"]'
    )
    environ = {"P2PNODE_HOSTING_HIDDEN_DIM": "3", "P2PNODE_NODE_BOOTSTRAP": "/a, /b"}
    settings = load(file=file, environ=environ, texts={"hosting": {"threads": "4"}})
    assert (settings.hosting.hidden_dim, settings.hosting.threads) == (3, 4)
    assert settings.node.listen == ("/ip4/1.2.3.4/tcp/1",)
    assert settings.node.bootstrap == ("/a", "/b")


def test_a_whole_number_serves_where_a_number_is_asked():
    assert load(overrides={"hosting": {"learning_rate": 1}}).hosting.learning_rate == 1.0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"hostin": {}}, "did you mean 'hosting'"),
        ({"hosting": {"hiden_dim": 1}}, "did you mean 'hidden_dim'"),
        ({"hosting": {"hidden_dim": "wide"}}, "must be a whole number"),
        ({"hosting": {"hidden_dim": True}}, "must be a whole number"),
        ({"hosting": {"hidden_dim": -1}}, "not negative"),
        ({"hosting": {"learning_rate": float("nan")}}, "finite"),
        ({"network": {"max_dials": 0}}, r"network\.max_dials must be more than 0"),
        ({"hosting": {"update_period": 0}}, "more than 0"),
        ({"node": {"listen": [1]}}, "list of texts"),
        ({"mdns": {"enabled": "maybe"}}, "true or false"),
        ({"dht": {"mode": "maybe"}}, "must be one of auto, server, client"),
        ({"dht": 3}, "table"),
        ({"limits": {"max_bytes_per_peer": 262_143}}, "must be at least 262144"),
        ({"network": {"yamux_max_frame": 1}}, r"yamux_max_frame must be at least 1024"),
        ({"dht": {"protocol": "kad"}}, "must be a protocol such as"),
        ({"dht": {"protocol": ""}}, "must be a protocol such as"),
        ({"dht": {"bucket_size": 257}}, "bucket_size must not exceed"),
        ({"dht": {"patience": 6.0}}, "patience must not exceed"),
        ({"dht": {"query_timeout": 31.0}}, "query_timeout must not exceed"),
        ({"dht": {"record_ttl": 3600.0}}, "republish_interval must be below"),
        ({"dht": {"provider_ttl": 3600.0}}, "republish_interval must be below"),
        ({"dht": {"max_record_bytes": 1 << 20}}, "max_record_bytes must be 4 KiB below"),
        ({"dht": {"ban_time": 601.0}}, "ban_time must not exceed"),
        ({"trainer": {"latency_smoothing": 1.5}}, "must not exceed 1"),
        ({"trainer": {"codec": "zip"}}, "one of none, float16, bfloat16, blockwise-int8"),
        ({"limits": {"low_water": 900}}, r"low_water must not exceed limits\.high_water"),
        ({"limits": {"ip4_network_prefix": 33}}, "ip4_network_prefix must be at least 1"),
        ({"limits": {"ip6_address_prefix": 129}}, "must not exceed 128"),
        ({"limits": {"ip4_address_prefix": 16}}, "not exceed ip4_address_prefix"),
        ({"limits": {"exempt_subnets": ["10.0.0.1/8"]}}, "exempt_subnets holds no subnet"),
        ({"limits": {"exempt_subnets": ["home"]}}, "exempt_subnets holds no subnet"),
        ({"reachability": {"mode": "maybe"}}, "must be one of auto, public, private"),
        ({"reachability": {"confidence": 10}}, "confidence must not exceed window"),
        ({"reachability": {"dial_data_bytes": 29_999}}, "dial_data_bytes must be from 30000"),
        ({"reachability": {"verdict_ttl": 60.0}}, "verdict_ttl must be above"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_name(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"hostin": {}}, "did you mean 'hosting'"),
        ({"hosting": {"hiden_dim": 1}}, "did you mean 'hidden_dim'"),
        ({"network": {"max_dials": 0}}, r"network\.max_dials must be more than 0"),
        ({"limits": {"low_water": 900}}, r"low_water must not exceed limits\.high_water"),
    ],
)
def test_a_copy_is_checked_as_what_is_loaded(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Settings().replace(**overrides)


def test_a_copy_differs_in_what_was_asked_for_alone():
    copy = Settings().replace(hosting={"hidden_dim": 7}, node={"listen": ["/ip4/1.2.3.4/tcp/1"]})
    assert (copy.hosting.hidden_dim, copy.node.listen) == (7, ("/ip4/1.2.3.4/tcp/1",))
    assert copy.replace(hosting={"hidden_dim": 64}, node={"listen": Settings().node.listen}) == (
        Settings()
    )


def test_every_least_value_is_of_a_setting_whose_default_meets_it():
    for name, least in _LEAST.items():
        section, _, field = name.partition(".")
        assert getattr(getattr(Settings(), section), field) >= least


@pytest.mark.parametrize("data", [b"[node", b"\x00", b"\xff\xfe"])
def test_a_broken_file_is_refused(tmp_path, data):
    file = tmp_path / "node.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(file=file)


def test_zero_is_taken_where_it_means_something():
    assert load(overrides={"hosting": {"threads": 0, "seed": 0}}) == Settings()
    assert not load(overrides={"mdns": {"enabled": False}}).mdns.enabled
    for name in sorted(_MAY_BE_ZERO):
        section, _, field = name.partition(".")
        assert getattr(getattr(load(texts={section: {field: "0"}}), section), field) == 0


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load(file=tmp_path / "absent.toml")


def test_text_that_is_no_number_is_refused_by_its_setting():
    with pytest.raises(ConfigError, match=r"hosting\.hidden_dim must be a whole number, not 'x'"):
        load(environ={"P2PNODE_HOSTING_HIDDEN_DIM": "x"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"d_low": 7},
        {"d": 13},
        {"d_out": 4},
        {"d_score": 7},
        {"mcache_gossip": 6},
        {"publish_threshold": -400.0},
        {"graylist_threshold": -900.0},
        {"gossip_threshold": 1.0},
        {"behaviour_penalty_weight": 1.0},
        {"behaviour_penalty_decay": 1.0},
        {"rpc_bytes": 2 << 20},
        {"max_queue_bytes": 1 << 19},
        {"max_queue_messages": 2047},
        {"max_partial_bytes": (1 << 20) - 1},
        {"subscription_queue_bytes": 1 << 19},
        {"max_message_bytes": 1 << 20},
        {"ip_colocation_ip4_prefix": 33},
        {"ip_colocation_factor_whitelist": ["nowhere"]},
    ],
)
def test_pubsub_parameters_that_do_not_go_together_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"pubsub.*{name}"):
        load(overrides={"pubsub": wrong})
