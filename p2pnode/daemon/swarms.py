"""The swarms of a daemon: of the layers it hosts, and of those that somebody looks at.

People name runs; `p2pnode.swarm` knows them by id, and the names are put back in what is shown.
"""

import dataclasses
import random
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.daemon.control.params import text
from p2pnode.daemon.control.service import Method
from p2pnode.errors import BadRequestError
from p2pnode.rpc.authority import Authority
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Proof
from p2pnode.swarm.gossip.announcement import Announcement
from p2pnode.swarm.gossip.core import Member
from p2pnode.swarm.gossip.reputation import Standing
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.gossip.swarms import Swarms
from p2pnode.swarm.network import Network
from p2pnode.wire.uids import Uid

if TYPE_CHECKING:
    from p2pnode.daemon.hosting import Hosting

LOOKED_AT: Final = 30.0  # seconds for which a swarm is kept after somebody has looked at it
MAX_WAIT: Final = 30.0  # seconds, of one question for changes
PATIENCE: Final = 3.0  # seconds for the members of a swarm that was just joined to be heard of
MAX_OFFENDERS_SHOWN: Final = 100


class SwarmService:
    """The daemon's `Swarms`, and the commands about them.

    Args:
        network: the node's network side.
        settings: of the node.
        membership_of: this node's membership of a run, by the run's name.
        hosting: what is hosted, if anything yet.
        rng: the source of chance.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        *,
        membership_of: Callable[[str], Membership],
        hosting: Callable[[], "Hosting | None"],
        rng: random.Random,
    ) -> None:
        self._network = network
        self._membership_of = membership_of
        self._hosting = hosting
        self._memberships: dict[str, Membership] = {}  # by run id
        self._run_name = settings.node.run
        self._is_enabled = settings.gossip.enabled
        self.swarms = Swarms(
            network.host,
            key=network.key,
            pubsub=network.pubsub,
            directory=network.directory,
            reputation=network.reputation,
            authority=Authority(self._memberships, settings.rpc.token_cache_size),
            proof_of=self._proof_of,
            hosted=self._hosted,
            settings=settings.gossip,
            rng=rng,
        )

    def swarm(self, uid: Uid) -> LayerSwarm:
        """Return the swarm of a layer, its run by name, and stay in it until it is released.

        Raises:
            ResourceLimitError: the node is in as many swarms as it may be.
        """
        return self.swarms.swarm(self._by_id(uid))

    def release(self, uid: Uid) -> None:
        """Use the swarm of a layer, its run by name, no more: what was announced is withdrawn."""
        self.swarms.release(self._by_id(uid))

    def methods(self) -> Mapping[str, Method]:
        """Return the commands of the control socket."""
        return {"swarms": self._list, "swarm": self._show}

    def describe(self) -> dict[str, Any]:
        """Say for the status how many swarms there are, and what is held against whom."""
        joined = self.swarms.joined
        now = trio.current_time()
        offenders = self._network.reputation.standings(now)
        return {
            "joined": len(joined),
            "members": len({each.peer_id for swarm in joined for each in swarm.members}),
            "linked": len(self.swarms.links),
            "offenders": [_describe_standing(each) for each in offenders[:MAX_OFFENDERS_SHOWN]],
        }

    # --- commands -------------------------------------------------------------------------------

    async def _list(self, _params: Mapping[str, Any]) -> Any:
        found = {swarm.uid: self._summarise(swarm) for swarm in self.swarms.joined}
        alone = [uid for uid in self._hosted() if uid not in found]
        return {"swarms": list(found.values()), "alone": [str(self._by_name(uid)) for uid in alone]}

    async def _show(self, params: Mapping[str, Any]) -> Any:
        """Describe one swarm; with `since`, once its revision is another, or after a while."""
        if not self._is_enabled:
            raise BadRequestError("this node takes part in no gossip; start it with gossip.enabled")
        since, wait = params.get("since"), params.get("wait", MAX_WAIT)
        if not isinstance(wait, int | float) or not 0 <= wait <= MAX_WAIT:
            raise BadRequestError(f"wait must be a number of seconds, at most {MAX_WAIT:g}")
        uid = self._by_id(Uid.parse(text(params, "uid"), self._run_name or None))
        is_new = all(swarm.uid != uid for swarm in self.swarms.joined)
        swarm = self.swarms.look_at(uid, within=LOOKED_AT + wait)
        if since is None:
            await self.swarms.refresh(uid)
            if is_new and swarm.members:
                with trio.move_on_after(PATIENCE):
                    await swarm.wait_until(lambda: bool(swarm.announcements))
        else:
            with trio.move_on_after(wait):
                await swarm.wait_until(lambda: swarm.revision != since)
        return {
            **self._summarise(swarm),
            "revision": swarm.revision,
            "own": swarm.own and _describe_announcement(swarm.own),
            "members": [self._describe_member(swarm, each) for each in swarm.members],
        }

    def _summarise(self, swarm: LayerSwarm) -> dict[str, Any]:
        members = swarm.members
        said = [each.announcement for each in members if each.announcement is not None]
        said += [swarm.own] if swarm.own is not None else []
        return {
            "uid": str(self._by_name(swarm.uid)),
            "hosted": swarm.uid in self._hosted(),
            "peers": len(members),
            "announcing": len(said),
            "round": max((each.claim.round for each in said), default=None),
            "mode": next((each.claim.mode for each in said if each.claim.mode), None),
            "best_score": max(
                (each.claim.score for each in said if each.claim.score is not None), default=None
            ),
        }

    def _describe_member(self, swarm: LayerSwarm, member: Member) -> dict[str, Any]:
        said, now = member.announcement, trio.current_time()
        standing = self._network.reputation.standing(member.peer_id, now)
        connection = self._network.host.connection_to(member.peer_id)
        return {
            "peer_id": str(member.peer_id),
            "listed": member.is_listed,
            "connected": connection is not None,
            "load": member.load,
            "throughput": member.throughput,
            "announcement": said and _describe_announcement(said),
            "shunned": swarm.is_shunned(member.peer_id),
            "standing": standing and _describe_standing(standing),
        }

    # --- runs -----------------------------------------------------------------------------------

    def _hosted(self) -> Collection[Uid]:
        if (hosting := self._hosting()) is None:
            return ()
        self._memberships.update({each.run_id: each for each in hosting.memberships()})
        return hosting.uids

    def _by_id(self, uid: Uid) -> Uid:
        membership = self._membership_of(uid.run)
        self._memberships[membership.run_id] = membership
        return uid.in_run(membership.run_id)

    def _by_name(self, uid: Uid) -> Uid:
        membership = self._memberships.get(uid.run)
        return uid if membership is None else uid.in_run(membership.name)

    def _proof_of(self, run_id: str) -> Proof:
        membership = self._memberships.get(run_id)
        if membership is None or membership.token is None:
            return Proof()
        return Proof(membership.token, membership.expires_at)


def _describe_announcement(said: Announcement) -> dict[str, Any]:
    claim = said.claim
    return {
        "round": claim.round,
        "steps": claim.steps,
        "score": claim.score,
        "scored_on": claim.scored_on,
        "data": claim.data.hex() or None,
        "weights": claim.weights.hex() or None,
        "size": claim.size,
        "codec": claim.codec,
        "mode": claim.mode or None,
        "version": said.version,
        "age": max(0.0, wall_time() - said.issued),
        "expires": said.expiry,
    }


def _describe_standing(standing: Standing) -> dict[str, Any]:
    return dataclasses.asdict(standing) | {"peer_id": str(standing.peer_id)}
