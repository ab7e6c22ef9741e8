import datetime as dt

import pytest
import trio
import trio.testing

from p2pnode.clock import bind_wall_time_to_trio, wall_time
from p2pnode.config import OwnerSettings
from p2pnode.daemon.owner.core import Cause, Sample
from p2pnode.daemon.owner.quiet_hours import QuietHours
from p2pnode.daemon.owner.service import NodePaused, NodeResumed, OwnerRuleOff, OwnerService
from p2pnode.errors import ConfigError
from p2pnode.events import Event, EventBus

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC).timestamp()


class Experts:
    """What stands aside, and the steps it was asked for."""

    def __init__(self):
        self.steps = []
        self.is_slow = False
        self.has_room = True

    def stand_aside(self):
        self.steps.append("aside")

    async def free_device(self):
        if self.is_slow:
            self.steps.append("wait")
            await trio.sleep(30)
        self.steps.append("free")

    async def come_back(self):
        self.steps.append("back" if self.has_room else "no room")
        return self.has_room


class Machine:
    """A sampler that says what a test wants."""

    missing = ""
    cpu = 0.0

    async def sample(self, now):
        await trio.lowlevel.checkpoint()
        return Sample(at=now, cpu=self.cpu)


@pytest.fixture
def experts():
    return Experts()


@pytest.fixture
def events():
    bus = EventBus()
    bus.seen = []
    bus.on(Event, bus.seen.append)
    return bus


@pytest.fixture
async def make(experts, events, nursery):
    bind_wall_time_to_trio(NOON)

    async def make(*spans, sampler=None, **settings):
        service = OwnerService(
            OwnerSettings(**settings),
            events,
            lambda: experts,
            sampler=sampler,
            quiet_hours=QuietHours(spans, dt.UTC),
        )
        await nursery.start(service.run)
        await trio.testing.wait_all_tasks_blocked()
        experts.steps.clear()
        return service

    return make


async def test_a_pause_refuses_calls_at_once_and_frees_the_device_soon(
    autojump_clock, make, experts, events
):
    service = await make()
    assert service.pause().cause is Cause.OWNER
    assert experts.steps == ["aside"]
    await trio.testing.wait_all_tasks_blocked()
    assert experts.steps == ["aside", "free"]
    service.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert experts.steps == ["aside", "free", "back"]
    assert events.seen == [
        NodePaused(cause=Cause.OWNER, reason="its owner paused it", until=None),
        NodeResumed(),
    ]


async def test_a_pause_for_a_time_ends_when_it_is_over(autojump_clock, make, experts):
    service = await make()
    assert service.pause(7200).until == pytest.approx(NOON + 7200, abs=0.01)
    await trio.sleep(7199)
    assert service.decision.paused
    await trio.sleep(2)
    assert not service.decision.paused
    assert experts.steps == ["aside", "free", "back"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
async def test_no_time_and_for_ever_are_no_times_to_pause_for(autojump_clock, make, seconds):
    service = await make()
    with pytest.raises(ConfigError, match="--for 2h"):
        service.pause(seconds)
    assert not service.decision.paused


async def test_who_resumes_does_not_wait_for_the_pause_to_be_complete(
    autojump_clock, make, experts
):
    experts.is_slow = True
    service = await make()
    service.pause()
    await trio.sleep(1)
    service.resume()
    await trio.sleep(1)
    assert experts.steps == ["aside", "wait", "back"]


async def test_quiet_hours_come_and_go(autojump_clock, make, experts, events):
    service = await make("12:10-12:20")
    await trio.sleep(601)
    assert service.decision.cause is Cause.QUIET_HOURS
    assert service.decision.until == NOON + 1200
    await trio.sleep(600)
    assert not service.decision.paused
    assert experts.steps == ["aside", "free", "back"]


async def test_a_node_started_in_quiet_hours_begins_paused(autojump_clock, make, events):
    service = await make("11:00-13:00")
    assert service.decision.cause is Cause.QUIET_HOURS
    assert [type(each) for each in events.seen] == [NodePaused]


async def test_experts_hosted_while_paused_stand_aside_from_the_start(autojump_clock, make):
    service = await make()
    service.pause()
    await trio.testing.wait_all_tasks_blocked()
    late = Experts()
    service.begin(late)
    assert late.steps == ["aside"]


async def test_a_clock_that_is_set_is_noticed(autojump_clock, make):
    service = await make("18:00-19:00", check_interval=30.0)
    bind_wall_time_to_trio(NOON + 6 * 3600)
    await trio.sleep(31)
    assert service.decision.cause is Cause.QUIET_HOURS
    assert wall_time() < NOON + 7 * 3600


async def test_a_device_without_room_is_tried_again(autojump_clock, make, experts):
    service = await make(check_interval=30.0)
    service.pause()
    await trio.testing.wait_all_tasks_blocked()
    experts.has_room = False
    service.resume()
    await trio.sleep(31)
    experts.has_room = True
    await trio.sleep(30)
    assert experts.steps == ["aside", "free", "no room", "no room", "back"]


async def test_other_programs_come_first(autojump_clock, make, experts):
    machine = Machine()
    service = await make(sampler=machine, sample_interval=5.0, pause_after=10.0, resume_after=60.0)
    machine.cpu = 0.9
    await trio.sleep(16)
    assert service.decision.cause is Cause.OTHERS
    machine.cpu = 0.0
    await trio.sleep(66)
    assert experts.steps == ["aside", "free", "back"]


async def test_that_a_rule_is_off_is_said_once(autojump_clock, make, events):
    machine = Machine()
    machine.missing = "the GPU cannot be watched: no driver"
    service = await make(sampler=machine, sample_interval=5.0)
    await trio.sleep(60)
    assert events.seen == [OwnerRuleOff(reason=machine.missing)]
    assert service.missing == machine.missing


async def test_a_node_without_experts_can_be_paused(autojump_clock, events, nursery):
    bind_wall_time_to_trio(NOON)
    service = OwnerService(OwnerSettings(), events, lambda: None)
    await nursery.start(service.run)
    assert service.pause().paused
    await trio.testing.wait_all_tasks_blocked()
    assert not service.resume().paused
