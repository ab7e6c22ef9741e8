"""Homes, routers and an internet, out of network namespaces; nothing leaves the machine.

```
with Lab() as lab:
    server = lab.host()                       # 52.0.1.2, on the public side
    home = lab.router("symmetric", delay=0.025)
    laptop = home.host()                      # 192.168.1.10, behind it
    print(laptop.run(["ping", "-c", "1", str(server.ip)]))
```

Public addresses are such as the code under test takes for public. All homes have the same private
network, as in real life: a private address that a peer tells leads to another machine, or to
oneself.
"""

import itertools
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from p2pnode.testing.daemons import Daemon
from p2pnode.testing.nat_lab.namespaces import LabError, Namespace, sweep
from p2pnode.testing.nat_lab.rules import LAN, WAN, rules_of
from p2pnode.testing.network import Nat

_HOME: Final = IPv4Network("192.168.1.0/24")
_FIRST_HOST: Final = 10  # the last number of the first machine's address; the router has 1
_EVERYWHERE: Final = "/ip4/0.0.0.0/tcp/4001"


class Machine:
    """A computer with one network interface.

    Attributes:
        ns: where its programs run.
        ip: its address, which is private behind a router that translates.
    """

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.ip = IPv4Address(0)

    def plug(self, ip: IPv4Address, gateway: IPv4Address, bits: int) -> None:
        """Take an address on the interface `eth`, which is there already."""
        self.ip = ip
        self.ns.ip(
            "link set eth up",
            f"addr add {ip}/{bits} dev eth",
            f"route add default via {gateway}",
        )

    def run(self, command: Sequence[str], *, timeout: float = 20.0) -> str:
        """Run a program to its end; returns what it printed.

        Raises:
            LabError: it failed, or took longer than `timeout` seconds.
        """
        return self.ns.run(command, timeout=timeout)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program; it ends with the laboratory."""
        return self.ns.start(command, **options)

    def daemon(self, data_dir: Path, *arguments: object, listen: str = _EVERYWHERE) -> Daemon:
        """Start `p2pnode join` here; a context manager ends it."""
        return Daemon(data_dir, *arguments, listen=listen, within=self.ns.within)


class Router:
    """A home router with one public address, and the machines behind it.

    Attributes:
        kind: how it maps and filters.
        ns: where its own programs run: a port mapping daemon, for one.
        public_ip: its address on the internet.
    """

    def __init__(self, lab: "Lab", kind: Nat, ns: Namespace) -> None:
        self.kind = kind
        self.ns = ns
        self.public_ip = IPv4Address(0)
        self._lab = lab
        self._gateway = IPv4Address(0)
        self._hosts = itertools.count(_FIRST_HOST)
        self.lan = _HOME
        self._ports = itertools.count()

    def host(self) -> Machine:
        """Add a machine to this home."""
        machine = Machine(self._lab.namespace("host"))
        self.attach(machine)
        return machine

    def attach(self, machine: Machine) -> None:
        """Plug a machine in here; it gets an address of this home."""
        port = f"port{next(self._ports)}"
        self.ns.ip(
            f"link add {port} type veth peer name eth netns {machine.ns.name}",
            f"link set {port} master {LAN} up",
        )
        machine.plug(self.lan[next(self._hosts)], self.lan[1], self.lan.prefixlen)

    def reboot(self) -> None:
        """Forget all connections and mappings, as after a power cut."""
        # A masquerading kernel drops an interface's connections when it goes down.
        self.ns.ip(f"link set {WAN} down")
        self._load_rules()
        self.ns.ip(f"link set {WAN} up", f"route add default via {self._gateway}")

    def move(self) -> None:
        """Get another public address from the provider; connections over the old one are dead."""
        old, self.public_ip, self._gateway = (
            self.public_ip,
            *self._lab.readdress(self.public_ip),
        )
        self.ns.ip(
            f"addr del {old}/24 dev {WAN}",
            f"addr add {self.public_ip}/24 dev {WAN}",
            f"route replace default via {self._gateway}",
        )

    def open(self, ip: IPv4Address, gateway: IPv4Address, lan: IPv4Network) -> None:
        """Take up service: the wire to the internet is there."""
        self.public_ip, self._gateway, self.lan = ip, gateway, lan
        self.ns.ip(
            f"link add {LAN} type bridge",
            f"addr add {lan[1]}/{lan.prefixlen} dev {LAN}",
            f"link set {LAN} up",
            f"link set {WAN} up",
            f"addr add {ip}/24 dev {WAN}",
            f"route add default via {gateway}",
        )
        self._load_rules()

    def _load_rules(self) -> None:
        if rules := rules_of(self.kind):
            self.ns.load_rules(f"table ip home\ndelete table ip home\n{rules}")


class Lab:
    """A small internet; a context manager that removes it again.

    Args:
        seed: which frames the lossy wires lose.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed
        self._namespaces: list[Namespace] = []
        self._segments = itertools.count(1)
        self._internet: Namespace | None = None

    @property
    def internet(self) -> Namespace:
        """What joins all public addresses."""
        assert self._internet is not None, "the laboratory is not open"
        return self._internet

    def host(self, *, delay: float = 0.0, loss: float = 0.0) -> Machine:
        """Add a machine with a public address.

        Args:
            delay: seconds from it to the middle of the internet, each way.
            loss: the share of frames lost on that way.
        """
        machine = Machine(self.namespace("public"))
        ip, gateway = self._connect(machine.ns, "eth", delay, loss)
        machine.plug(ip, gateway, 24)
        return machine

    def router(
        self, kind: Nat | str = Nat.PORT_RESTRICTED, *, delay: float = 0.0, loss: float = 0.0
    ) -> Router:
        """Add a home behind a router.

        Args:
            kind: how it maps and filters; the text is that of a `Nat`.
            delay: seconds from it to the middle of the internet, each way.
            loss: the share of frames lost on that way.
        """
        kind = Nat(kind)
        router = Router(self, kind, self.namespace(kind.value))
        ip, gateway = self._connect(router.ns, WAN, delay, loss)
        lan = _HOME
        if kind is Nat.NONE:
            lan = IPv4Network(f"52.1.{int(ip) >> 8 & 255}.0/24")
        router.open(ip, gateway, lan)
        if kind is Nat.NONE:
            self.internet.ip(f"route add {lan} via {ip}")
        return router

    def namespace(self, label: str) -> Namespace:
        """Make a namespace that is removed with the laboratory."""
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        return namespace

    def readdress(self, ip: IPv4Address) -> tuple[IPv4Address, IPv4Address]:
        """Take a public address back; returns another one at the same place, and its gateway."""
        interface = _interface_of(ip)
        fresh, gateway = self._draw_segment()
        self.internet.ip(
            f"link set {interface} down",
            f"addr flush dev {interface}",
            f"link set {interface} name {_interface_of(fresh)}",
            f"link set {_interface_of(fresh)} up",
            f"addr add {gateway}/24 dev {_interface_of(fresh)}",
        )
        return fresh, gateway

    def _draw_segment(self) -> tuple[IPv4Address, IPv4Address]:
        segment = IPv4Network(f"52.0.{next(self._segments)}.0/24")
        return segment[2], segment[1]

    def _connect(
        self, ns: Namespace, name: str, delay: float, loss: float
    ) -> tuple[IPv4Address, IPv4Address]:
        """Lay a wire from the internet to an interface; returns that one's address and gateway."""
        ip, gateway = self._draw_segment()
        ours = _interface_of(ip)
        if delay or loss:
            self._lay_wire(ours, ns, name, delay, loss)
        else:
            self.internet.ip(f"link add {ours} type veth peer name {name} netns {ns.name}")
        self.internet.ip(f"link set {ours} up", f"addr add {gateway}/24 dev {ours}")
        return ip, gateway

    def _lay_wire(self, ours: str, ns: Namespace, name: str, delay: float, loss: float) -> None:
        command = [sys.executable, "-m", "p2pnode.testing.nat_lab.wire"]
        command += [self.internet.name, ours, ns.name, name, str(delay), str(loss)]
        wire = ns.start([*command, f"{self._seed} {ours}"], stdout=subprocess.PIPE)
        assert wire.stdout is not None
        if wire.stdout.readline() != b"ready\n":
            raise LabError("the wire with delay and loss did not start; see its words above")

    def __enter__(self) -> Self:
        """Sweep up after others, and build the internet."""
        sweep()
        self._internet = self.namespace("internet")
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End all programs and remove all namespaces."""
        while self._namespaces:
            self._namespaces[-1].close()
            self._namespaces.pop()


def _interface_of(ip: IPv4Address) -> str:
    """The internet's interface towards the holder of a public address."""
    return f"to{int(ip) >> 8 & 255}"
