"""Whether others reach this node, as the control socket tells it: the verdict and its evidence."""

from typing import Any

from p2pnode.host.reachability.verdicts import Evidence
from p2pnode.host.reachability.votes import Finding
from p2pnode.protocols.autonat.service import ReachabilityInfo


def describe_reachability(info: ReachabilityInfo, now: float) -> dict[str, Any]:
    """Return what is known, for JSON; `age` and `for` are seconds before `now`, trio's clock."""
    return {
        "state": info.state.value,
        "forced": info.is_forced,
        "families": {
            f"ip{number}": _describe_finding(finding, now)
            for number, finding in info.families.items()
        },
        "addresses": [
            {"address": str(address), **_describe_finding(finding, now)}
            for address, finding in info.addresses.items()
        ],
        "servers": info.servers,
        "evidence": [_describe_evidence(each, now) for each in reversed(info.evidence)],
    }


def _describe_finding(finding: Finding, now: float) -> dict[str, Any]:
    return {
        "state": finding.state.value,
        "reached": finding.reached,
        "failed": finding.failed,
        "for": now - finding.since,
    }


def _describe_evidence(evidence: Evidence, now: float) -> dict[str, Any]:
    return {
        "age": now - evidence.at,
        "peer_id": str(evidence.peer_id),
        "network": evidence.network,
        "family": f"ip{evidence.family}",
        "addresses": [str(each) for each in evidence.addresses],
        "result": evidence.result.value,
        "text": evidence.text,
    }
