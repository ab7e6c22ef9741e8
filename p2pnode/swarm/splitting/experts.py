"""The hosted experts as split calls need them: each result with the version it belongs to."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch

from p2pnode.errors import OverloadedError
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.events import ExpertAdopted, ExpertRemoved, ExpertRestarted
from p2pnode.experts.parts import gradient_bytes, part_gradients, part_outputs, step_with
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.tensors import buffer_of, meta_of
from p2pnode.swarm.splitting.versions import Version, VersionLog, lineage_of
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

T = TypeVar("T")

_MAX_LOGS: Final = 4096  # experts whose versions are known; as many as a host may serve by default


class SplitExperts:
    """Computes parts of calls on hosted experts, and knows what version each expert has.

    Args:
        experts: what is hosted here.
        events: that tell when weights change in another way than by a split step.
    """

    def __init__(self, experts: ExpertHost, events: EventBus) -> None:
        self._experts = experts
        self._logs: OrderedDict[Uid, VersionLog] = OrderedDict()
        events.on(ExpertAdopted, self._forget)
        events.on(ExpertRemoved, self._forget)
        events.on(ExpertRestarted, self._forget)

    def was_applied(self, uid: Uid, key: bytes) -> bool:
        """Tell whether an expert's state has a step."""
        return self._experts.was_applied(uid, key)

    async def version(self, uid: Uid) -> Version:
        """Return the version that an expert has now.

        Raises:
            UnknownExpertError: it is not hosted here.
            ExpertFailedError: its weights are not finite.
            OverloadedError, PausedError: the host takes no more work.
        """
        version = self._log(uid).at(self._experts.steps(uid))
        if version is None:
            version = await self._experts.compute(uid, 1, lambda chain: _fresh_version(chain[0]))
            self._log(uid).receive(version)
        return version

    def receive(self, uid: Uid, version: Version) -> None:
        """Take in that an expert goes on from a state of this version."""
        log = self._logs[uid] = VersionLog()
        log.receive(version)

    async def gradient_bytes(self, uid: Uid) -> int:
        """Return how large the gradients of an expert's weights are; raises as `version`."""
        return await self._experts.compute(uid, 1, lambda chain: gradient_bytes(chain[0]))

    async def forward(
        self, uid: Uid, inputs: Sequence[torch.Tensor], *, caller: PeerId, deadline: float
    ) -> tuple[list[torch.Tensor], Version]:
        """Compute some rows' outputs, and say with which weights.

        Raises:
            CallError: it failed, or the host takes no more work.
        """

        def work(expert: ExpertBackend) -> list[torch.Tensor]:
            return part_outputs(expert, inputs)

        return await self._run(uid, work, inputs, caller=caller, deadline=deadline)

    async def backward(
        self,
        uid: Uid,
        inputs: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
        *,
        caller: PeerId,
        deadline: float,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], Version]:
        """Compute some rows' gradients; see `part_gradients`.

        Returns:
            The gradients of the inputs, those of the weights, and the weights' version.

        Raises:
            CallError: it failed, or the host takes no more work.
        """
        found: list[list[torch.Tensor]] = []

        def work(expert: ExpertBackend) -> list[torch.Tensor]:
            answer, weights = part_gradients(expert, inputs, gradients, kept)
            found.append(weights)
            return answer

        answer, version = await self._run(uid, work, inputs, caller=caller, deadline=deadline)
        return answer, found[0], version

    async def compute(self, uid: Uid, work: Callable[[ExpertBackend], T]) -> T:
        """Run `work` in the worker of an expert's device, between two batches."""
        return await self._experts.compute(uid, 1, lambda chain: work(chain[0]))

    async def step(self, uid: Uid, gradients: Sequence[torch.Tensor], rows: int, key: bytes) -> int:
        """Step an expert's optimiser, unless this step is part of its state.

        Args:
            uid: the expert; its version must be known.
            gradients: the sum over all parts; it is used up.
            rows: of all parts.
            key: of the step.

        Returns:
            How many steps it has taken then.

        Raises:
            UnknownExpertError: it is not hosted here any more.
            ExpertFailedError: it failed.
        """
        before = self._log(uid).at(self._experts.steps(uid))
        taken = await self._experts.step_once(
            uid, lambda expert: step_with(expert, gradients, rows), key
        )
        steps = self._experts.steps(uid)
        if taken and before is not None and steps == before.steps + 1:
            self._log(uid).receive(before.after(key))
        return steps

    async def _run(
        self,
        uid: Uid,
        work: Callable[[ExpertBackend], list[torch.Tensor]],
        inputs: Sequence[torch.Tensor],
        *,
        caller: PeerId,
        deadline: float,
    ) -> tuple[list[torch.Tensor], Version]:
        await self.version(uid)  # or the log would not know it afterwards
        seen: list[int] = []

        def noting(expert: ExpertBackend) -> list[torch.Tensor]:
            seen.append(expert.steps)
            return work(expert)

        shapes = [tuple(each.shape) for each in inputs]
        answer = await self._experts.part(
            uid,
            noting,
            rows=len(inputs[0]),
            positions=self._experts.info(uid).positions_of(shapes),
            caller=caller,
            deadline=deadline,
        )
        version = self._log(uid).at(seen[-1])
        if version is None:
            raise OverloadedError(f"the weights of {uid.name} have just been replaced; try again")
        return answer, version

    def _forget(self, event: ExpertAdopted | ExpertRemoved | ExpertRestarted) -> None:
        self._logs.pop(event.uid, None)

    def _log(self, uid: Uid) -> VersionLog:
        log = self._logs.setdefault(uid, VersionLog())
        self._logs.move_to_end(uid)
        if len(self._logs) > _MAX_LOGS:
            self._logs.popitem(last=False)
        return log


def digest_of(tensors: Sequence[torch.Tensor]) -> bytes:
    """Return 32 bytes that stand for tensors in main memory, to the last bit."""
    digest = hashlib.blake2b(digest_size=32)
    for tensor in tensors:
        digest.update(f"{meta_of(tensor)}\n".encode())
        digest.update(buffer_of(tensor))
    return digest.digest()


def _fresh_version(expert: ExpertBackend) -> Version:
    """Begin a lineage with all that the expert has learnt."""
    state = expert.state()
    names = sorted(state.tensors)
    told = "\n".join((state.layer, state.optimizer, str(state.steps), *names)).encode()
    return Version(
        state.steps, lineage_of(told + digest_of([state.tensors[name] for name in names]))
    )
