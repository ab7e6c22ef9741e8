"""p2pnode: deep-learning training on volunteers' machines, peer to peer.

The names here are the whole public interface; errors are in `p2pnode.errors`. They are imported
when they are first used, so that a node which computes nothing never loads torch.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from p2pnode.config import Settings
    from p2pnode.experts.layers import register_layer
    from p2pnode.trainer.connect import Trainer, connect
    from p2pnode.trainer.expert import RemoteExpert
    from p2pnode.trainer.mixture import MixtureOfExperts, RemoteMixtureOfExperts
    from p2pnode.trainer.sequential.language import RemoteLanguageModel
    from p2pnode.trainer.sequential.module import RemoteSequential

__version__ = "0.1.0"

__all__ = [
    "MixtureOfExperts",
    "RemoteExpert",
    "RemoteLanguageModel",
    "RemoteMixtureOfExperts",
    "RemoteSequential",
    "Settings",
    "Trainer",
    "connect",
    "register_layer",
]

_HOMES: Final = {
    "MixtureOfExperts": "p2pnode.trainer.mixture",
    "RemoteExpert": "p2pnode.trainer.expert",
    "RemoteLanguageModel": "p2pnode.trainer.sequential.language",
    "RemoteMixtureOfExperts": "p2pnode.trainer.mixture",
    "RemoteSequential": "p2pnode.trainer.sequential.module",
    "Settings": "p2pnode.config",
    "Trainer": "p2pnode.trainer.connect",
    "connect": "p2pnode.trainer.connect",
    "register_layer": "p2pnode.experts.layers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
