from p2pnode.swarm.splitting.versions import Version, VersionLog, authoritative, lineage_of

FIRST = Version(4, lineage_of(b"weights"))


def test_the_same_steps_in_the_same_order_give_the_same_version():
    one, other = FIRST.after(b"a").after(b"b"), FIRST.after(b"b").after(b"a")
    assert one == FIRST.after(b"a").after(b"b") != other
    assert one.steps == other.steps == 6


def test_what_most_peers_have_counts_however_many_steps_another_one_claims():
    liar = Version(2**50, lineage_of(b"lie"))
    assert authoritative([liar, FIRST, FIRST]) == FIRST
    assert authoritative([FIRST, FIRST.after(b"a")]) == FIRST.after(b"a")
    forks = [FIRST.after(b"a"), FIRST.after(b"b")]
    assert authoritative(forks) == authoritative(forks[::-1])


def test_a_log_knows_the_last_versions_of_one_lineage():
    log = VersionLog()
    assert log.at(4) is None
    version = FIRST
    log.receive(version)
    for key in range(100):
        version = version.after(bytes([key]))
        log.receive(version)
    assert log.at(version.steps) == version
    assert log.at(version.steps - 10).steps == version.steps - 10
    assert log.at(FIRST.steps) is None  # long ago
    log.receive(FIRST)  # weights of another lineage
    assert log.at(FIRST.steps) == FIRST
    assert log.at(version.steps) is None


def test_versions_before_one_that_is_known_to_be_the_swarm_s_do_not_count():
    newest = FIRST.after(b"one")
    assert authoritative([FIRST, FIRST, newest]) == FIRST
    assert authoritative([FIRST, FIRST, newest], newest) == newest
    assert authoritative([FIRST, FIRST], newest) == FIRST
    others = newest.after(b"two")  # of another caller
    assert authoritative([newest, others, others], newest) == others
    astray = Version(newest.steps, b"a" * 16)
    assert authoritative([astray, astray, newest], newest) == newest
