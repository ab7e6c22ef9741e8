"""The trainer of ordinary synchronous PyTorch code: `connect`, and what it gives."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.config.experts import Codec
from p2pnode.errors import ConfigError, PermissionDeniedError, TokenExpiredError
from p2pnode.models.building import Model
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.security.tokens import Membership
from p2pnode.swarm.network import Network
from p2pnode.trainer.call_log import log_calls
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.expert import RemoteExpert
from p2pnode.trainer.mixture import RemoteMixtureOfExperts
from p2pnode.trainer.portal import Portal
from p2pnode.trainer.remote import RemoteExperts
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sequential.language import RemoteLanguageModel
from p2pnode.trainer.sequential.module import RemoteSequential
from p2pnode.trainer.sequential.remote import RemoteChain
from p2pnode.trainer.splitting.caller import SplitCaller
from p2pnode.trainer.splitting.module import RemoteSwarms, SplitLayer
from p2pnode.trainer.stats import Stats
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

_ONE_PORT: Final = "/ip4/0.0.0.0/tcp/0"  # whichever is free


@dataclass(frozen=True, slots=True)
class Callers:
    """What calls experts, in the trio thread."""

    experts: ExpertCaller
    swarms: SplitCaller  # likewise, each as the whole swarm of its peers


class Trainer:
    """A connection to the experts of one run; `connect` makes it.

    Its modules work until the `with` block of `connect` ends, in any thread.
    """

    def __init__(self, portal: Portal[Callers], callers: Callers, settings: Settings) -> None:
        self._caller = callers.experts
        self._portal = portal
        self._settings = settings
        self._experts = RemoteExperts(portal, callers.experts)
        self._swarms = RemoteSwarms(portal, callers.experts, callers.swarms)

    def _codec(self, name: str | None) -> Codec:
        return find_codec(self._settings.trainer.codec if name is None else name)

    def expert(
        self,
        name: str,
        *,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        detect_anomalies: bool = False,
        codec: str | None = None,
    ) -> RemoteExpert:
        """Return one expert as a module; it is looked up when it is first called.

        Args:
            name: the expert without its run, `ffn0.1.2`.
            forward_timeout: seconds for one forward call; by default as the settings say.
            backward_timeout: the same for backward.
            detect_anomalies: see `RemoteExpert`.
            codec: how tensors travel: `none`, `float16`, `bfloat16` or `blockwise-int8`; by default
                as the settings say.

        Raises:
            InvalidUidError: no expert can have this name.
            ConfigError: there is no such codec.
        """
        return RemoteExpert(
            self._experts,
            name,
            forward_timeout=_or(forward_timeout, self._settings.trainer.forward_timeout),
            backward_timeout=_or(backward_timeout, self._settings.trainer.backward_timeout),
            detect_anomalies=detect_anomalies,
            codec=self._codec(codec),
        )

    def mixture_of_experts(
        self,
        block: str,
        *,
        grid: Sequence[int],
        in_features: int,
        k_best: int = 4,
        k_min: int = 1,
        backward_k_min: int = 1,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        timeout_after_k_min: float | None = None,
        allow_zero_outputs: bool = False,
        detect_anomalies: bool = False,
        codec: str | None = None,
    ) -> RemoteMixtureOfExperts:
        """Return a layer that sends each sample to its `k_best` experts of a block.

        `MixtureOfExperts` describes the arguments; timeouts and codec are by default as the
        settings say.

        Raises:
            InvalidUidError: no block can have this name.
            ConfigError: there is no such codec.
            ValueError: grid, k_best and k_min do not fit.
        """
        return RemoteMixtureOfExperts(
            self._experts,
            block,
            grid=grid,
            in_features=in_features,
            k_best=k_best,
            k_min=k_min,
            backward_k_min=backward_k_min,
            forward_timeout=_or(forward_timeout, self._settings.trainer.forward_timeout),
            backward_timeout=_or(backward_timeout, self._settings.trainer.backward_timeout),
            timeout_after_k_min=_or(
                timeout_after_k_min, self._settings.trainer.timeout_after_k_min
            ),
            allow_zero_outputs=allow_zero_outputs,
            detect_anomalies=detect_anomalies,
            codec=self._codec(codec),
        )

    def sequential(
        self,
        block: str,
        start: int,
        stop: int,
        *,
        micro_batches: int = 1,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        detect_anomalies: bool = False,
        codec: str | None = None,
    ) -> RemoteSequential:
        """Return the blocks `block.start` up to, but not including, `block.stop` as one module.

        Args:
            block: the blocks' name without their number, `blocks`.
            start: the first one.
            stop: the one behind the last.
            micro_batches: see `RemoteSequential`.
            forward_timeout: seconds for the forward pass; by default as the settings say.
            backward_timeout: the same for backward.
            detect_anomalies: see `RemoteSequential`.
            codec: how tensors travel: `none`, `float16`, `bfloat16` or `blockwise-int8`; by default
                as the settings say.

        Raises:
            InvalidUidError: no block can have this name.
            ConfigError: there is no such codec.
            ValueError: there is no block from `start` to `stop`, or no micro-batch.
        """
        chain = Chain(self._caller.client, block, start, stop, settings=self._settings)
        return RemoteSequential(
            RemoteChain(self._portal, chain),
            micro_batches=micro_batches,
            forward_timeout=_or(forward_timeout, self._settings.trainer.forward_timeout),
            backward_timeout=_or(backward_timeout, self._settings.trainer.backward_timeout),
            detect_anomalies=detect_anomalies,
            codec=self._codec(codec),
        )

    def language_model(
        self,
        model: str,
        *,
        block: str = "blocks",
        seed: int = 0,
        dtype: str = "float32",
        micro_batches: int = 1,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        codec: str | None = None,
    ) -> RemoteLanguageModel:
        """Return a language model whose blocks are hosted, with its ends in this process.

        Args:
            model: what the hosts were told: `tiny` or another preset, or a local directory in
                Hugging Face's format, of which only the ends are read.
            block: the blocks' name without their number.
            seed: of fresh ends.
            dtype: of weights and activations, as the hosts have it.
            micro_batches: see `RemoteSequential`.
            forward_timeout: seconds for the forward pass; by default as the settings say.
            backward_timeout: the same for backward.
            codec: how tensors travel in training; by default as the settings say.

        Raises:
            ConfigError: there is no such codec.
            ModelError: there is no such model.
            InvalidUidError: no block can have this name.
            ValueError: `micro_batches` is not positive.
        """
        found = Model.find(model, dtype)
        blocks = self.sequential(
            block,
            0,
            found.config.layers,
            micro_batches=micro_batches,
            forward_timeout=forward_timeout,
            backward_timeout=backward_timeout,
            codec=codec,
        )
        return RemoteLanguageModel(found.build_ends(seed), blocks)

    def split_layer(
        self,
        name: str,
        *,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        detect_anomalies: bool = False,
        codec: str | None = None,
    ) -> SplitLayer:
        """Return one layer as a module whose batches are split over all peers that host it.

        Args:
            name: the layer without its run, `layers.3`.
            forward_timeout: seconds for one forward call; by default as the settings say.
            backward_timeout: seconds for one step; by default as the settings say.
            detect_anomalies: see `RemoteExpert`.
            codec: how tensors travel; by default as the settings say.

        Raises:
            InvalidUidError: no layer can have this name.
            ConfigError: there is no such codec.
        """
        return SplitLayer(
            self._swarms,
            name,
            forward_timeout=_or(forward_timeout, self._settings.trainer.forward_timeout),
            backward_timeout=_or(backward_timeout, self._settings.trainer.backward_timeout),
            detect_anomalies=detect_anomalies,
            codec=self._codec(codec),
        )

    def settle(self) -> None:
        """Wait until the steps of all split layers are over, as the end of the block does.

        Raises:
            StepLostError: one was not taken, or nobody knows; it is told once.
        """
        self._swarms.settle()

    def stats(self) -> Stats:
        """Return the counts of calls so far; works after the end of the block, too."""
        return self._caller.book.recorder.snapshot()


@contextlib.contextmanager
def connect(
    bootstrap: str | Sequence[str],
    *,
    run: str,
    invite: str | None = None,
    key: PrivateKey | None = None,
    settings: Settings | None = None,
) -> Iterator[Trainer]:
    """Connect to the experts of a run, for the time of a `with` block.

    The network runs in a background thread that ends with the block. Nothing is hosted. One port
    is opened, from which all connections leave, so that hosts behind NATs can let them in.

    Args:
        bootstrap: addresses of nodes to join through, each ending in `/p2p/` and the peer's id;
            one that answers is enough.
        run: the run's name.
        invite: what the run's owner gave you; None for an open run.
        key: this trainer's identity, for an invite that names it; by default a new one, which
            takes any invite that names nobody.
        settings: limits and intervals.

    Raises:
        InvalidAddressError: a bootstrap address cannot be read.
        InvalidTokenError: the invite cannot be read.
        ConfigError: there is no bootstrap address, or the invite is for another run.
        TokenExpiredError, PermissionDeniedError: the invite does not allow training, or no longer.
        NoPeersError: none of the bootstrap addresses answers.
        StepLostError: when the block ends; the last step of a split layer was not taken.
    """
    addresses = [bootstrap] if isinstance(bootstrap, str) else list(bootstrap)
    if not addresses:
        raise ConfigError("a trainer needs the address of a node to join through")
    for address in addresses:
        peer_address(address)
    settings = settings or Settings()
    key = key or PrivateKey.generate()
    membership = _membership(run, invite, key.peer_id)
    service = partial(_serve, key, addresses, membership, settings)
    portal: Portal[Callers] = Portal(service, name=f"p2pnode trainer {run}")
    callers = portal.start()
    try:
        yield Trainer(portal, callers, settings)
        portal.call(callers.swarms.settle)
    finally:
        portal.close()


def _membership(run: str, invite: str | None, peer_id: PeerId) -> Membership:
    if invite is None:
        return Membership.open(run)
    membership = Membership.accept(invite, peer_id)
    if membership.name != run:
        raise ConfigError(f"the invite is for the run {membership.name}, not {run}")
    if membership.expires_at <= wall_time():
        raise TokenExpiredError("the invite has expired; ask the run's owner for a new one")
    if "train" not in membership.scopes:
        raise PermissionDeniedError(
            "the invite does not allow training; ask the run's owner for one with the scope train"
        )
    return membership


async def _serve(
    key: PrivateKey,
    bootstrap: Sequence[str],
    membership: Membership,
    settings: Settings,
    *,
    task_status: trio.TaskStatus[Callers],
) -> None:
    """Run the network of a trainer: in nobody's routing table, and with no wish to be dialled.

    It listens all the same, so that all its dials leave from one port: hosts behind NATs have to
    know where a trainer's packets come from to let them in.
    """
    rng = random.Random()
    alone = settings.replace(
        dht={"mode": "client"},
        relay={"client": "never", "server": "never"},
        reachability={"mode": "private", "serve": False},
        portmap={"mode": "off"},
        gossip={"enabled": False},
    )
    network = Network(key, alone, rng=rng)
    log_calls(network.host.events)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        if settings.dcutr.enabled:
            await network.listen([_ONE_PORT])
        await network.join(bootstrap)
        caller = ExpertCaller(
            network.host,
            network.directory,
            membership,
            settings=settings,
            rng=rng,
        )
        swarms = SplitCaller(caller.client, settings=settings)
        await nursery.start(swarms.run)
        task_status.started(Callers(caller, swarms))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
