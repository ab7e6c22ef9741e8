import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.daemon.owner.quiet_hours import DAYS, QuietHours, Span, parse_span
from p2pnode.errors import ConfigError

UTC = dt.UTC
BERLIN = ZoneInfo("Europe/Berlin")
MINUTES = st.integers(0, 24 * 60 - 1)


def clock(minutes):
    return f"{minutes // 60:02}:{minutes % 60:02}"


def at(text, zone=None):
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone or UTC)).timestamp()


@pytest.mark.parametrize(
    ("text", "days", "begin", "end"),
    [
        ("09:00-17:00", range(7), 540, 1020),
        ("mon-fri 09:00-17:00", range(5), 540, 1020),
        ("Sat 22:00-02:00", [5], 1320, 120),
        ("fri-mon 00:00-24:00", [4, 5, 6, 0], 0, 1440),
        ("  sun   06:30-07:00 ", [6], 390, 420),
    ],
)
def test_a_span_is_read_as_it_is_written(text, days, begin, end):
    assert parse_span(text) == Span(frozenset(days), begin, end)


@pytest.mark.parametrize(
    "text",
    [
        "", "mon", "9:00-17:00", "09:00", "09:60-10:00", "25:00-26:00", "24:00-01:00",
        "09:00-09:00", "mon-fry 09:00-10:00", "mon-tue-wed 09:00-10:00", "mon09:00-10:00",
        "09:00-24:01", "mon,tue 09:00-10:00", "09:00-10:00 mon", "\uff10\uff19:00-10:00x",
    ],
)  # fmt: skip
def test_what_is_no_span_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="mon-fri 09:00-17:00"):
        parse_span(text)


@given(st.text(max_size=30))
def test_any_text_is_a_span_or_refused(text):
    try:
        span = parse_span(text)
    except ConfigError:
        return
    assert span.days
    assert span.begin != span.end


@given(first=st.sampled_from(DAYS), last=st.sampled_from(DAYS), begin=MINUTES, end=MINUTES)
def test_a_span_covers_just_the_minutes_a_walk_through_it_meets(first, last, begin, end):
    if begin == end:
        return
    span = parse_span(f"{first}-{last} {clock(begin)}-{clock(end)}")
    days = [DAYS.index(first)]
    while days[-1] != DAYS.index(last):
        days.append((days[-1] + 1) % 7)
    length = (end - begin) % 1440
    # Only the edges of a day can go wrong, and one minute beside each of them.
    walked = {(day * 1440 + begin + step) % 10_080 for day in days for step in range(length)}
    for day in range(7):
        for minute in {0, 1, begin - 1, begin, begin + 1, end - 1, end, 1438, 1439}:
            if 0 <= minute < 1440:
                assert span.covers(day, minute) == (day * 1440 + minute in walked)


def test_without_spans_it_is_never_quiet():
    hours = QuietHours(())
    assert not hours
    assert not hours.covers(at("2026-11-21T12:00"))
    assert hours.next_change(at("2026-11-21T12:00")) is None


def test_one_that_never_ends_has_no_end():
    hours = QuietHours(["00:00-24:00"], UTC)
    assert hours.covers(at("2026-11-21T12:00"))
    assert hours.next_change(at("2026-11-21T12:00")) is None


def test_a_weekend_ends_on_monday():
    hours = QuietHours(["mon-fri 09:00-17:00"], UTC)
    friday = at("2026-11-20T17:00")
    assert hours.covers(friday - 1)
    assert not hours.covers(friday)
    assert hours.next_change(friday) == at("2026-11-23T09:00")
    assert hours.next_change(at("2026-11-23T16:59:59.5")) == at("2026-11-23T17:00")


@given(
    moment=st.floats(at("2026-01-01"), at("2027-01-01")),
    begin=MINUTES,
    end=MINUTES,
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
)
def test_the_next_change_is_where_the_clock_on_the_wall_says_so(moment, begin, end, zone):
    if begin == end:
        return
    hours = QuietHours([f"{clock(begin)}-{clock(end)}"], ZoneInfo(zone))
    change = hours.next_change(moment)
    assert change is not None
    assert moment < change <= moment + 26 * 3600
    assert hours.covers(change) != hours.covers(moment)
    assert hours.covers(change - 1) == hours.covers(moment)


def test_on_the_night_of_25_hours_the_hour_that_comes_twice_is_quiet_twice():
    hours = QuietHours(["02:00-03:00"], BERLIN)
    first = at("2026-10-25T00:00+00:00")  # 02:00 CEST
    assert hours.next_change(first - 1) == first
    assert hours.covers(first + 3599)
    assert hours.covers(first + 3600)  # 02:00 CET
    assert hours.next_change(first) == first + 7200


def test_on_the_night_of_23_hours_the_hour_left_out_is_not_quiet():
    hours = QuietHours(["sun 02:00-03:00"], BERLIN)
    night = at("2026-03-29T01:00+00:00")  # 01:59 is followed by 03:00
    assert not hours.covers(night - 1)
    assert not hours.covers(night)
    assert hours.next_change(night) == at("2026-04-05T02:00", BERLIN)


def test_an_overnight_span_lasts_an_hour_less_when_clocks_are_set_forward():
    hours = QuietHours(["sat 22:00-07:00"], BERLIN)
    begin = at("2026-03-28T22:00", BERLIN)
    assert hours.next_change(begin) == begin + 8 * 3600
