"""Blocks of a language model as experts: `lm/blocks.3` is the model's fourth block."""

from p2pnode.config import HostingSettings
from p2pnode.errors import ModelError
from p2pnode.experts.layers import Layer
from p2pnode.models.building import Model
from p2pnode.rpc.schema import TensorSpec, UpTo
from p2pnode.wire.uids import Uid


def block_layer(uid: Uid, settings: HostingSettings) -> Layer:
    """Describe the block that a uid stands for.

    Its name tells the architecture, so that what one model has learnt is not taken for another's.

    Args:
        uid: its last coordinate counts the blocks, from 0.
        settings: `model` and `dtype`.

    Raises:
        ModelError: the uid has more than one coordinate, or the model cannot be read.
    """
    if len(uid.coordinates) != 1:
        raise ModelError(
            f"{uid.name} cannot name a block of a model; use one coordinate, as in"
            f" {uid.block}.{uid.coordinates[0]}"
        )
    model = Model.find(settings.model, settings.dtype)
    config = model.config
    hidden = TensorSpec(config.dtype, (None, UpTo(config.max_positions), config.hidden_size))
    return Layer(
        name=f"block-{config.block_fingerprint}",
        build=lambda _hidden_dim: model.build_block(uid.coordinate),
        inputs=lambda _hidden_dim: (hidden,),
    )
