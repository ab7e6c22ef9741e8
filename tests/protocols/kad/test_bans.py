from p2pnode.protocols.kad.bans import MAX_REMEMBERED, Bans


def test_each_further_failure_doubles_the_ban_up_to_the_longest():
    bans: Bans[str] = Bans(5.0, 30.0)
    now, lengths = 0.0, []
    for _ in range(5):
        assert bans.receive_failure("a", now)
        lengths.append(bans.banned_until("a") - now)
        now = bans.banned_until("a")
        assert not bans.is_banned("a", now)
    assert lengths == [5.0, 10.0, 20.0, 30.0, 30.0]


def test_failures_during_a_ban_do_not_count_again():
    bans: Bans[str] = Bans(5.0, 600.0)
    assert bans.receive_failure("a", 0.0)
    assert not bans.receive_failure("a", 1.0)
    assert bans.banned_until("a") == 5.0


def test_a_success_forgets_all_failures():
    bans: Bans[str] = Bans(5.0, 600.0)
    bans.receive_failure("a", 0.0)
    bans.receive_failure("a", 6.0)
    bans.receive_success("a")
    assert not bans.is_banned("a", 6.0)
    bans.receive_failure("a", 7.0)
    assert bans.banned_until("a") == 12.0


def test_a_pardon_lifts_the_ban_but_not_the_memory():
    bans: Bans[str] = Bans(5.0, 600.0)
    bans.receive_failure("a", 0.0)
    bans.pardon("a")
    bans.pardon("unknown")
    assert not bans.is_banned("a", 0.0)
    bans.receive_failure("a", 1.0)
    assert bans.banned_until("a") == 11.0


def test_what_is_remembered_is_bounded():
    bans: Bans[int] = Bans(5.0, 600.0)
    for who in range(MAX_REMEMBERED + 10):
        bans.receive_failure(who, 0.0)
    assert len(bans) == MAX_REMEMBERED
    assert not bans.is_banned(0, 0.0)
    assert bans.is_banned(MAX_REMEMBERED + 9, 0.0)
