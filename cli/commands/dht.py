"""`dht …`: ask the running daemon's DHT."""

import base64
from pathlib import Path
from typing import Any, Final

import click

from cli.options import data_dir_option, json_option
from cli.output import count, print_json, print_note, print_table
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir

_MAX_VALUE_BYTES: Final = 32 * 1024  # in base64, what one request of the control socket holds


@click.group()
def dht() -> None:
    """Ask the running daemon's DHT: its table of peers, and what lies under a key.

    A KEY is /pk/PEER-ID, or /p2pnode-index/RUN-ID/hosts/PREFIX/SHARD for the signed entries of
    those who host experts.
    """


@dht.command()
@data_dir_option
@json_option
def peers(data_dir: DataDir, as_json: bool) -> None:
    """List the peers in the routing table."""
    found = call_daemon(data_dir.control_socket, "dht.peers")
    if as_json:
        print_json(found)
        return
    rows = [
        (each["peer_id"], "yes" if each["connected"] else "no", "\n".join(each["addresses"]))
        for each in found
    ]
    title = f"{count(len(found), 'peer')} in the routing table"
    print_table(title, ("peer id", "connected", "addresses"), rows)


@dht.command()
@click.argument("peer")
@data_dir_option
@json_option
def find(peer: str, data_dir: DataDir, as_json: bool) -> None:
    """Find the addresses of PEER, a peer id."""
    found = call_daemon(data_dir.control_socket, "dht.find", peer=peer)
    if as_json:
        print_json(found)
        return
    for address in found["addresses"]:
        click.echo(address)
    _note_time(found)


@dht.command()
@click.argument("key")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write the value's bytes.  [printed as base64]",
)
@data_dir_option
@json_option
def get(key: str, output: Path | None, data_dir: DataDir, as_json: bool) -> None:
    """Find the value under KEY."""
    found = call_daemon(data_dir.control_socket, "dht.get", key=key)
    if output is not None:
        output.write_bytes(base64.b64decode(found["value"]))
    if as_json:
        print_json(found)
    else:
        if output is None:
            click.echo(found["value"])
        _note_time(found)


@dht.command()
@click.argument("key")
@click.argument("file", type=click.File("rb"))
@data_dir_option
@json_option
def put(key: str, file: Any, data_dir: DataDir, as_json: bool) -> None:
    """Store the bytes of FILE (- for standard input) under KEY.

    The rules of the key's namespace must allow it.
    """
    data = file.read(_MAX_VALUE_BYTES + 1)
    if len(data) > _MAX_VALUE_BYTES:
        raise click.UsageError(f"a value has at most {_MAX_VALUE_BYTES} bytes")
    value = base64.b64encode(data).decode("ascii")
    found = call_daemon(data_dir.control_socket, "dht.put", key=key, value=value)
    if as_json:
        print_json(found)
    else:
        print_note(f"stored at {count(found['stored'], 'peer')}")
        _note_time(found)


def _note_time(found: dict[str, Any]) -> None:
    print_note(f"{found['seconds'] * 1000:.1f} ms")
