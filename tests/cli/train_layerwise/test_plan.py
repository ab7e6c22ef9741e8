import pytest

from cli.train_layerwise.plan import Agreed, DemoOptions, Place
from p2pnode.errors import ConfigError


@pytest.mark.parametrize("text", ["1/2", "2/2", "13/20"])
def test_a_place_is_read_and_written(text):
    assert str(Place.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "-1/2", "a/b", "1/2/3", "¹/2", "1 /2", "1/"]
)
def test_what_is_no_place_is_refused(text):
    with pytest.raises(ConfigError):
        Place.parse(text)


def test_participants_are_spread_over_the_layers():
    options = DemoOptions(layers=3, peers=2)
    experts = [options.place(number).expert for number in range(options.participants)]
    assert experts == ["layers.0", "layers.1", "layers.2"] * 2


def test_what_is_agreed_is_told_to_each_participant():
    flags = Agreed(mode="average", in_flight=2).flags()
    assert flags[flags.index("--mode") + 1] == "average"
    assert flags[flags.index("--in-flight") + 1] == "2"
