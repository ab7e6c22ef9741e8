"""The rules of home routers, for nftables. Pure.

Linux translates addresses by connection. What a `masquerade` lets back in is what the connection's
own remote endpoint sends, and the public port is the private one where that is free: address and
port-dependent filtering over an endpoint-independent mapping. With `fully-random` each connection
gets a port of its own, which makes it symmetric.

Routers that filter less remember, in a map, which machine used a port, and for which remote
addresses: inbound packets to such a port go there.

All drop what strangers send and tell them nothing. A router that refuses a SYN by a reset would
spoil what TCP hole punching lives on, and hardly any home router does.
"""

from typing import Final

from p2pnode.testing.network import Nat

LAN: Final = "lan"  # the interface towards the home
WAN: Final = "wan"  # the interface towards the internet

_REMEMBER: Final = {
    Nat.FULL_CONE: ("inet_service", "{0} sport", "{0} dport"),
    Nat.RESTRICTED: ("ipv4_addr . inet_service", "ip daddr . {0} sport", "ip saddr . {0} dport"),
}


def rules_of(kind: Nat, *, udp_timeout: int = 60) -> str:
    """Return the nftables script of a router.

    Args:
        kind: how it maps and filters. `NONE` routes public addresses and filters nothing.
        udp_timeout: seconds for which the less strict kinds let strangers in at a port that has
            been silent.
    """
    if kind is Nat.NONE:
        return ""
    random = " fully-random" if kind is Nat.SYMMETRIC else ""
    remembered = _REMEMBER.get(kind)
    maps, learn, redirect = "", "", ""
    if remembered is not None:
        key, outbound, inbound = remembered
        for proto in ("tcp", "udp"):
            name = f"seen_{proto}"
            maps += (
                f"map {name} {{ type {key} : ipv4_addr; flags dynamic,timeout; "
                f"timeout {udp_timeout}s; size 4096; }}\n"
            )
            learn += (
                f'iifname "{LAN}" meta l4proto {proto} '
                f"update @{name} {{ {outbound.format(proto)} : ip saddr }}\n"
            )
            redirect += f'iifname "{WAN}" dnat to {inbound.format(proto)} map @{name}\n'
    return f"""
table ip home {{
    {maps}
    chain inbound {{
        type nat hook prerouting priority dstnat; policy accept;
        {redirect}
    }}
    chain outbound {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{WAN}" masquerade{random}
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname {{ "lo", "{LAN}" }} accept
        ct state established,related accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        iifname "{LAN}" jump learn
        ct state established,related accept
        ct status dnat accept
    }}
    chain learn {{
        {learn}
        accept
    }}
}}
"""
