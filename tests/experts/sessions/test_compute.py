"""Steps of several sessions, computed as one."""

import dataclasses

import pytest
import torch

from p2pnode.errors import ExpertFailedError, UnknownExpertError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.failures import OutOfDeviceMemoryError
from p2pnode.experts.sessions.compute import CachedStep, Caches, compute_steps
from p2pnode.models.transformer import DecoderBlock
from p2pnode.wire.uids import Uid

LENGTH = 12


@pytest.fixture
def chain(settings):
    hosting = dataclasses.replace(settings, model="tiny")
    return [build_backend(uid, hosting) for uid in Uid("lm", "blocks.1").span(3)]


def session(chain, rows=1, seen=0, seed=0):
    """A session's caches, and its next step behind so many positions."""
    torch.manual_seed(seed)
    caches = Caches(chain, rows, LENGTH)
    if seen:
        before = CachedStep(
            caches=caches, hidden=torch.randn(rows, seen, 64), position=0, order=None
        )
        compute_steps(chain, [before])
    return CachedStep(caches=caches, hidden=torch.randn(rows, 1, 64), position=seen, order=None)


def sessions(chain):
    return [session(chain, rows=1 + seed % 3, seen=seed, seed=seed) for seed in range(8)]


def test_steps_computed_together_give_what_each_gives_alone(chain):
    alone = [compute_steps(chain, [step])[0] for step in sessions(chain)]
    together = compute_steps(chain, sessions(chain))
    for given, each in zip(together, alone, strict=True):
        torch.testing.assert_close(given, each)


def test_a_row_goes_on_from_another_one_only_in_its_own_session(chain):
    first, second = (session(chain, rows=2, seen=4, seed=seed) for seed in (1, 2))
    crossed = dataclasses.replace(first, order=(1, 1))
    given, other = compute_steps(chain, [crossed, second])
    twin = session(chain, rows=2, seen=4, seed=1)
    (expected,) = compute_steps(chain, [dataclasses.replace(twin, order=(1, 1))])
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(
        other, compute_steps(chain, [session(chain, rows=2, seen=4, seed=2)])[0]
    )


def test_what_is_not_finite_in_one_session_fails_no_other(chain):
    steps = sessions(chain)
    steps[3] = dataclasses.replace(steps[3], hidden=steps[3].hidden * torch.nan)
    outcomes = compute_steps(chain, steps)
    assert [isinstance(each, ExpertFailedError) for each in outcomes] == [
        number == 3 for number in range(8)
    ]


def test_a_session_of_a_block_that_is_gone_fails_no_other(chain, settings):
    old = session(
        [
            build_backend(Uid("lm", "blocks.1"), dataclasses.replace(settings, model="tiny")),
            *chain[1:],
        ],
        seed=1,
    )
    given, outcome = compute_steps(chain, [session(chain), old])
    assert isinstance(outcome, UnknownExpertError)
    torch.testing.assert_close(given, compute_steps(chain, [session(chain)])[0])


def test_what_does_not_fit_the_device_together_is_computed_one_by_one(chain, monkeypatch):
    alone = [compute_steps(chain, [step])[0] for step in sessions(chain)]

    def fail(*_):
        raise OutOfDeviceMemoryError("no room")

    monkeypatch.setattr(DecoderBlock, "forward_stretches", fail)
    for given, each in zip(compute_steps(chain, sessions(chain)), alone, strict=True):
        torch.testing.assert_close(given, each)
