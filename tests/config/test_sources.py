import logging

import pytest

from p2pnode.config import Settings
from p2pnode.errors import ConfigError


def warnings_about(environ, caplog):
    with caplog.at_level(logging.WARNING, logger="p2pnode"):
        assert Settings.load(environ=environ) == Settings()
    return [each.getMessage() for each in caplog.records]


def test_a_mistyped_variable_is_told_with_the_one_it_resembles(caplog):
    (warning,) = warnings_about({"P2PNODE_NETWROK_DIAL_TIMEOUT": "3"}, caplog)
    assert warning == (
        "P2PNODE_NETWROK_DIAL_TIMEOUT is no setting and is ignored; "
        "did you mean 'P2PNODE_NETWORK_DIAL_TIMEOUT'?"
    )


def test_a_variable_in_the_wrong_case_is_told(caplog):
    (warning,) = warnings_about({"P2PNODE_network_dial_timeout": "3"}, caplog)
    assert "is no setting" in warning


def test_variables_that_others_set_stop_no_node(caplog):
    environ = {"P2PNODE_SERVICE_HOST": "10.0.0.1", "P2PNODE_PORT": "tcp://10.0.0.1:4001"}
    assert len(warnings_about(environ, caplog)) == 2


def test_variables_with_another_use_and_those_of_others_are_passed_over(caplog):
    environ = {"P2PNODE_DATA_DIR": "/x", "P2PNODE_INTEROP_P2PD": "/y", "P2PNODES_X": "1"}
    assert warnings_about(environ, caplog) == []


def test_a_variable_of_an_unfit_value_is_refused_by_the_name_of_its_setting():
    with pytest.raises(ConfigError, match=r"mdns\.enabled must be true or false"):
        Settings.load(environ={"P2PNODE_MDNS_ENABLED": "perhaps"})
