"""Rules of the house that no linter knows."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import p2pnode

PACKAGE = Path(p2pnode.__file__).parent
TESTS = Path(__file__).parent
IMPURE = {"trio", "socket", "time", "random", "torch", "os", "threading", "asyncio"}
CORES = sorted(PACKAGE.rglob("*core*.py"))


def test_the_public_names_are_these():
    assert p2pnode.__all__ == [
        "MixtureOfExperts",
        "RemoteExpert",
        "RemoteLanguageModel",
        "RemoteMixtureOfExperts",
        "RemoteSequential",
        "Settings",
        "Trainer",
        "connect",
        "register_layer",
    ]
    for name in p2pnode.__all__:
        assert getattr(p2pnode, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = p2pnode.absent


def imported_roots(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_there_are_cores_to_check():
    assert len(CORES) >= 5


@pytest.mark.parametrize("path", CORES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_core_has_no_clock_no_chance_and_no_sockets(path):
    assert not IMPURE & set(imported_roots(path))


@functools.cache
def imported_with_hypothesis():
    """Return, for each test module that hypothesis drives, what it imports."""
    modules = (set(imported_modules(test)) for test in TESTS.rglob("test_*.py"))
    return [names for names in modules if "hypothesis.given" in names]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


DECODERS = [
    PACKAGE / name
    for name in (
        "host/portmap/natpmp.py",
        "host/portmap/pcp.py",
        "mux/yamux/frames.py",
        "protocols/autonat/messages.py",
        "protocols/dcutr/messages.py",
        "protocols/kad/messages.py",
        "protocols/pubsub/framing.py",
        "protocols/pubsub/messages.py",
        "protocols/relay/addresses.py",
        "protocols/relay/messages.py",
        "protocols/relay/vouchers.py",
        "rpc/codecs/names.py",
        "rpc/codecs/transform.py",
        "rpc/messages.py",
        "rpc/schema.py",
        "security/noise/frames.py",
        "security/tokens.py",
        "swarm/averaging/messages.py",
        "swarm/description.py",
        "swarm/gossip/announcement.py",
        "swarm/index.py",
        "swarm/splitting/messages.py",
        "swarm/weights/manifest.py",
        "swarm/weights/messages.py",
        "swarm/weights/offers.py",
        "wire/addresses.py",
        "wire/envelope.py",
        "wire/keys.py",
        "wire/packing.py",
        "wire/peer_id.py",
        "wire/records.py",
        "wire/uids.py",
        "wire/varint.py",
    )
]


@pytest.mark.parametrize("path", CORES + DECODERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_hypothesis_drives_whatever_reads_bytes_from_elsewhere(path):
    module = ".".join(("p2pnode", *path.relative_to(PACKAGE).with_suffix("").parts))
    assert any(module in names for names in imported_with_hypothesis())


@pytest.mark.parametrize(
    "module", ["cli.main", "p2pnode", "p2pnode.daemon.node", "p2pnode.swarm.lookup"]
)
def test_nodes_that_host_nothing_never_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def sleeps(path):
    """Yield the functions in `path` that sleep in real time."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        calls = [each for each in ast.walk(function) if isinstance(each, ast.Call)]
        called = {ast.unparse(each.func) for each in calls}
        if "time.sleep" in called:
            yield function.name
        if not called & {"trio.sleep", "trio.sleep_until"} or not function.name.startswith("test_"):
            continue
        arguments = {each.arg for each in function.args.args + function.args.kwonlyargs}
        marks = " ".join(ast.unparse(each) for each in function.decorator_list)
        # Those that are no coroutines say themselves which clock their story runs by.
        chosen = "clock=" in ast.unparse(function) or "virtual" in arguments
        if not ("clock" in " ".join(arguments) or "real" in marks or chosen):
            yield function.name


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.name)
def test_no_test_sleeps_in_real_time(path):
    if "real" in path.read_text().partition("pytestmark")[2][:80]:
        return
    assert list(sleeps(path)) == []
