"""One layer of a swarm as a torch module, whose batches are split over all of its peers."""

from typing import Any

from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.expert import RemoteExpert
from p2pnode.trainer.portal import Portal
from p2pnode.trainer.remote import RemoteExperts, refuse_anomalies
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.trainer.splitting.caller import SplitCaller


class RemoteSwarms(RemoteExperts):
    """The swarms of a run as blocking calls.

    Args:
        portal: into the trio thread.
        caller: describes experts.
        splitter: calls their swarms.
    """

    def __init__(self, portal: Portal[Any], caller: ExpertCaller, splitter: SplitCaller) -> None:
        super().__init__(portal, caller)
        self._splitter = splitter

    def forward_one(self, call: ExpertCall, policy: CallPolicy) -> Answer:
        """Compute one expert's outputs, each peer those of some rows."""
        refuse_anomalies([call], policy)
        return self._portal.call(self._splitter.forward, call.name, call.inputs, policy)

    def backward_one(self, call: ExpertCall, policy: CallPolicy) -> Answer:
        """Take one step of an expert at all of its peers."""
        refuse_anomalies([call], policy)
        return self._portal.call(
            self._splitter.backward,
            call.name,
            call.inputs,
            call.gradients,
            policy,
            call.answered_by,
        )

    def settle(self) -> None:
        """See `SplitCaller.settle`."""
        self._portal.call(self._splitter.settle)


class SplitLayer(RemoteExpert):
    """A layer that several peers host, used like a local module; all of them compute each batch.

    Calling it gives each peer some rows of the batch, in proportion to how fast the peers have
    shown to be, and puts the outputs together. Backward gives the same rows to the same peers. The
    gradients of the weights are added up over all rows - whether they are a mean over the batch is
    for the loss to say - and every peer steps its optimiser once with the sum. So the layer learns
    what it would learn in one place, as long as its outputs for one row do not depend on the
    others, as those of batch norm do.

    Backward returns when the gradients of the inputs are there; the step ends beside what comes
    next, and the outputs of the next call are those of the weights after it.

    The rows of a peer that fails go to the others. Arguments and errors are those of
    `RemoteExpert`; `StepLostError` says that the step before was not taken, or that nobody knows.
    """
