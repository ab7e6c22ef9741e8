"""Publish and subscribe: gossipsub 1.0, 1.1 and 1.2, and floodsub's peers.

In the order of reading: `messages` is the wire; `core` the router, with `mesh`, `gossip`, `scoring`
and `deliveries` as its parts on a common `state`; `outbox` what waits for a slow peer; `service`
the tasks.
"""

from p2pnode.protocols.pubsub.core import Verdict
from p2pnode.protocols.pubsub.info import PeerGivenUp, PubSubInfo
from p2pnode.protocols.pubsub.scoring import TopicScoreParams
from p2pnode.protocols.pubsub.service import PubSub
from p2pnode.protocols.pubsub.subscription import PubSubMessage, Subscription
from p2pnode.protocols.pubsub.validation import Validator

__all__ = [
    "PeerGivenUp",
    "PubSub",
    "PubSubInfo",
    "PubSubMessage",
    "Subscription",
    "TopicScoreParams",
    "Validator",
    "Verdict",
]
