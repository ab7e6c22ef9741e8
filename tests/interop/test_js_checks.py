"""The checks that anyone can run against a peer, run against js-libp2p."""

import pytest
import trio

from p2pnode.testing.peer.checks.table import run_checks, table
from p2pnode.testing.peer.node import KAD

pytestmark = [pytest.mark.real, pytest.mark.interop]

WITHIN = 90


BULK = {"echo-50M", "perf"}  # over QUIC, half a minute; it passes, but not in each run of the tests


async def test_js_libp2p_passes_every_check(target, transport):
    outcomes = []
    left_out = BULK if transport == "quic" else set()
    with trio.fail_after(WITHIN):
        checks = [each for each in table(KAD) if each.name not in left_out]
        await run_checks(target, checks, outcomes.append)
    assert [each for each in outcomes if not each.ok] == []
    found = {each.check: each.facts for each in outcomes}
    assert found["identify"]["missing"] == []
    assert found["identify"]["agent"].startswith("js-libp2p/")
