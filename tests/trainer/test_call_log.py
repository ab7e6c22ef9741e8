import logging

import pytest

from p2pnode.events import EventBus
from p2pnode.rpc.client import CallMade
from p2pnode.trainer.call_log import log_calls
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

PEER = PrivateKey.from_seed(bytes(32)).peer_id


@pytest.fixture
def emit():
    events = EventBus()
    log_calls(events)

    def emit(error=None, trace=b"\x01\xab" * 4):
        events.emit(
            CallMade(
                peer_id=PEER, operation="forward", uid=Uid("open:digits", "ffn.0"), span=1,
                seconds=0.0123, error=error, trace=trace,
            )
        )  # fmt: skip

    return emit


def test_a_call_is_logged_with_the_trace_its_host_logs(caplog, emit):
    caplog.set_level(logging.DEBUG, "p2pnode.calls")
    emit()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"forward of ffn.0 at {PEER}: ok after 12.3 ms, trace 01ab01ab01ab01ab"
    )
    assert record.trace == "01ab01ab01ab01ab"


def test_a_failed_call_is_logged_also_where_those_that_went_well_are_not(caplog, emit):
    caplog.set_level(logging.INFO, "p2pnode.calls")
    emit()
    emit(error="PausedError", trace=b"")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "PausedError" in record.getMessage()
    assert record.getMessage().endswith("trace none")
