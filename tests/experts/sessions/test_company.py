"""Who waits for whom before a step is computed."""

from p2pnode.experts.sessions.company import Company

WINDOW = 0.004


def seat(company, session, pause, now=0.0):
    """Let a session step twice with a pause between; its answer came at `now`."""
    company.receive_answer(session, now - pause)
    company.receive_step(session, now)
    company.receive_start()
    company.receive_answer(session, now)


def test_who_is_alone_does_not_wait():
    company = Company(WINDOW)
    seat(company, "a", 0.001)
    company.receive_step("a", 1.0)
    assert company.wait_until(1.0) == 1.0


def test_a_step_waits_for_a_session_that_is_due_and_no_longer_than_the_window():
    company = Company(WINDOW)
    seat(company, "b", 0.010, now=1.0)  # due at 1.010
    company.receive_step("a", 1.008)
    assert company.wait_until(1.008) == 1.008 + WINDOW
    company.receive_step("c", 1.009)  # joins those who wait, and does not prolong it
    assert company.wait_until(1.009) == 1.008 + WINDOW
    company.receive_step("b", 1.010)
    assert company.wait_until(1.010) == 1.010
    for _ in range(3):
        company.receive_start()
    company.receive_answer("b", 2.0)
    company.receive_step("a", 2.008)
    assert company.wait_until(2.008) == 2.008 + WINDOW  # a window of its own


def test_nobody_waits_for_who_is_slow_or_has_paused_or_has_just_begun():
    company = Company(WINDOW)
    seat(company, "slow", 0.5, now=1.0)
    seat(company, "paused", 0.001, now=0.5)
    company.receive_answer("new", 1.0)
    company.receive_step("a", 1.002)
    assert company.wait_until(1.002) == 1.002


def test_nobody_waits_for_who_has_left():
    company = Company(WINDOW)
    seat(company, "b", 0.001, now=1.0)
    company.receive_step("a", 1.0)
    assert company.wait_until(1.0) > 1.0
    company.forget("b")
    assert company.wait_until(1.0) == 1.0
    company.forget("a")
    assert len(company) == 0
