from dataclasses import dataclass

import trio

from p2pnode.events import Event, EventBus


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened(Event):
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Other(Event):
    pass


def test_listeners_hear_their_class_and_its_bases_until_undone():
    bus, heard = EventBus(), []
    undo = bus.on(Happened, lambda event: heard.append(event.number))
    bus.on(Event, lambda event: heard.append(type(event).__name__))
    bus.emit(Happened(number=1))
    bus.emit(Other())
    undo()
    undo()
    bus.emit(Happened(number=2))
    assert heard == [1, "Happened", "Other", "Happened"]


async def test_a_slow_subscriber_loses_the_oldest_and_knows_how_many():
    bus = EventBus()
    with bus.subscribe(Happened, limit=2) as subscription:
        for number in range(5):
            bus.emit(Happened(number=number))
        assert [(await subscription.get()).number for _ in range(2)] == [3, 4]
        assert subscription.dropped == 3
    bus.emit(Happened(number=9))
    with trio.move_on_after(0) as scope:
        await subscription.get()
    assert scope.cancelled_caught


async def test_a_waiting_subscriber_is_woken(autojump_clock):
    bus = EventBus()
    with bus.subscribe() as subscription:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def later():
                await trio.sleep(5)
                bus.emit(Other())

            assert await subscription.get() == Other()
            assert trio.current_time() >= 5
