import resource
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli.commands import bench
from cli.open_files import WANTED, raise_open_files


@pytest.fixture
def limits(monkeypatch):
    """Stand in for the system's limits, soft and hard."""
    found = [1024, 524_288]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: tuple(found))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, both: found.__setitem__(0, both[0]))
    return found


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [
        (1024, 524_288, WANTED),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, WANTED),
        (100_000, 524_288, 100_000),
    ],
)
def test_open_files_are_raised_as_far_as_is_allowed_and_of_use(limits, soft, hard, after):
    limits[:] = [soft, hard]
    assert raise_open_files() == after == limits[0]


def test_without_any_limit_nothing_is_changed(limits):
    limits[:] = [resource.RLIM_INFINITY] * 2
    assert raise_open_files() == WANTED
    assert limits[0] == resource.RLIM_INFINITY


def test_a_bench_of_more_connections_than_files_is_refused_before_it_starts(limits):
    limits[:] = [256, 256]
    done = CliRunner().invoke(bench.stream, ["--connections", "500"])
    assert done.exit_code == 2
    assert "500 connections need" in done.output


@pytest.mark.real
def test_a_daemon_with_too_few_files_for_its_limits_says_so(tmp_path):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
        "from cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "join", "--data-dir", str(tmp_path), "--listen", "/bad"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "WARNING: the system lets this process open 256 files" in done.stderr
    assert "limits.max_connections = 1024" in done.stderr
    assert done.returncode == 1
