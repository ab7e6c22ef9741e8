import pytest

from p2pnode.testing.soak.growth import Sample, growth

MB = 1e6


def samples(*, memory=lambda wave: 300 * MB, tasks=lambda wave: 50, files=lambda wave: 15):
    return [Sample(memory=memory(wave), tasks=tasks(wave), files=files(wave)) for wave in range(24)]


def test_a_daemon_that_holds_what_it_held_has_not_grown():
    assert growth(samples()) == {}


def test_caches_may_fill_while_it_warms_up():
    assert growth(samples(memory=lambda wave: min(300 + 10 * wave, 350) * MB)) == {}


def test_noise_is_no_growth():
    found = samples(
        memory=lambda wave: (300 + wave % 3) * MB,
        tasks=lambda wave: 50 + (wave == 20),
        files=lambda wave: 15 + wave % 2,
    )
    assert growth(found) == {}


def test_memory_that_goes_on_growing_is_found():
    found = growth(samples(memory=lambda wave: (300 + wave) * MB))
    assert found == {"memory": pytest.approx(12 * MB)}


@pytest.mark.parametrize("what", ["tasks", "files"])
def test_a_single_task_or_file_that_stays_is_found(what):
    assert growth(samples(**{what: lambda wave: 50 + (wave > 12)})) == {what: 1}


def test_four_samples_are_enough():
    assert growth(samples()[:4]) == {}
