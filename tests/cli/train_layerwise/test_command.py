import pytest
from click.testing import CliRunner

from cli.train_layerwise.command import train_layerwise
from cli.train_layerwise.join import settings_for
from cli.train_layerwise.plan import Agreed, Place
from p2pnode.config import Settings
from p2pnode.errors import ConfigError


def invoke(*arguments):
    return CliRunner().invoke(train_layerwise, arguments)


def test_a_layer_with_one_peer_cannot_lose_it():
    found = invoke("demo", "--peers", "1", "--kill")
    assert found.exit_code == 2
    assert "--kill needs --peers 2" in found.output


def test_position_says_what_is_hosted():
    found = invoke("join", "--position", "1/2", "--experts", "a/b.0")
    assert found.exit_code == 2
    assert "name no --experts" in found.output


def test_who_names_no_run_is_told_how_to():
    found = invoke("join", "--position", "1/2", "--part", "1/6")
    assert found.exit_code == 2
    assert "--invite TOKEN, or --run NAME" in found.output


@pytest.mark.parametrize("position", ["3/2", "first"])
def test_a_position_that_is_none_is_refused(position):
    assert isinstance(invoke("join", "--position", position).exception, ConfigError)


def test_a_participant_hosts_its_layer_and_keeps_what_is_agreed():
    agreed = Agreed(mode="average", batch=16, threshold=0.8, max_staleness=5)
    settings = settings_for(Settings(), Place(2, 3), agreed)
    assert settings.node.experts == ("layers.1",)
    assert settings.hosting.layer.endswith(":Hidden")
    assert settings.hosting.max_step_rows == settings.layerwise.batch == 16
    assert (settings.rounds.mode, settings.rounds.threshold) == ("average", 0.8)
    assert settings.layerwise.max_staleness == 5


def test_a_network_of_one_layer_has_nobody_to_hand_gradients_to():
    with pytest.raises(ConfigError, match="two layers"):
        settings_for(Settings(), Place(1, 1), Agreed())
