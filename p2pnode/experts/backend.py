"""One expert: a module, its optimiser, and the two things that are done with them.

No activations are kept between calls. Backward runs forward again under autograd, steps the
optimiser at once, and returns the gradients of the inputs, as in Learning@home. Everything here
runs in the device thread.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn

from p2pnode.config import HostingSettings
from p2pnode.config.experts import OptimizerPolicy
from p2pnode.errors import ConfigError, ExpertFailedError, ModelError
from p2pnode.experts.blocks import block_layer
from p2pnode.experts.failures import failures
from p2pnode.experts.layers import Layer, check_input_specs, find_layer
from p2pnode.experts.optimizers import (
    build_optimizer,
    fit_state,
    learning_rate,
    moments_of,
    retune,
    tensors_of,
)
from p2pnode.experts.passes import accumulate_through, backward_through, forward_through
from p2pnode.experts.states import (
    ExpertState,
    all_finite,
    check_kind,
    module_tensors,
    moments_in,
    weights_of,
)
from p2pnode.models.seeding import seeded
from p2pnode.rpc.tensors import TensorMeta, TensorSpec, dtype_of, meta_of
from p2pnode.wire.uids import Uid

_PROBE_ROWS: Final = 3  # of the batch that shows what a module puts out


class ExpertBackend:
    """A module with its optimiser.

    Args:
        uid: the expert's name, for messages.
        layer: what kind it is.
        module: on its device, in training mode.
        settings: optimiser, learning rate and clipping.
        inputs: what it takes.
        outputs: what it gives, or None to find out with a small batch.

    Attributes:
        parameters: those that learn, in the module's order.
        weights: how many the module has; 1 where it has none.

    Raises:
        ConfigError: the module cannot be run on its own inputs, or the optimiser is unknown.
    """

    def __init__(
        self,
        uid: Uid,
        layer: Layer,
        module: nn.Module,
        settings: HostingSettings,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...] | None = None,
    ) -> None:
        self.uid = uid
        self.layer = layer
        self.module = module
        self.inputs = inputs
        self.steps = 0
        self.rows = 0
        self._settings = settings
        self.device = next(
            (each.device for each in module.parameters()), torch.device(settings.device)
        )
        self.weights = max(1, sum(each.numel() for each in module.parameters()))
        self.parameters = [each for each in module.parameters() if each.requires_grad]
        held = (*module.parameters(), *module.buffers())
        self._held_bytes = sum(each.nbytes for each in held)
        self._learning_bytes = sum(each.nbytes for each in self.parameters)
        self._optimizer = build_optimizer(self.parameters, settings)
        self.broken = ""  # why, when an optimiser step was left half done
        self.outputs = outputs or self._infer_outputs()

    @property
    def size(self) -> int:
        """Bytes it uses at most besides its batches: weights, gradients, and what Adam keeps."""
        return self.size_with(self._settings)

    def size_with(self, settings: HostingSettings) -> int:
        """Return the bytes that it would use with other options of its optimiser."""
        return self._held_bytes + self._learning_bytes * (1 + moments_of(settings))

    def forward(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the module without autograd, see `forward_through`."""
        return forward_through([self], inputs)

    def backward(
        self, inputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Run the module again under autograd and step its optimiser, see `backward_through`."""
        return backward_through([self], inputs, gradients)

    def state(self, *, complete: bool = True) -> ExpertState:
        """Copy module and optimiser, or the module alone.

        Raises:
            ExpertFailedError: they are not in a state worth keeping.
        """
        self.check_usable()
        tensors = module_tensors(self.module)
        if self._optimizer is not None and complete:
            tensors |= tensors_of(self._optimizer)
        copies = {
            name: each.detach().to("cpu", copy=True).contiguous() for name, each in tensors.items()
        }
        if not all_finite(copies.values()):
            raise ExpertFailedError(f"the weights of {self.uid.name} are not finite")
        return ExpertState(
            tensors=copies,
            steps=self.steps,
            rows=self.rows,
            layer=self.layer.name,
            optimizer=self._settings.optimizer,
        )

    def load(self, state: ExpertState, optimizer: OptimizerPolicy = "adopt") -> None:
        """Take over a saved state; the learning rate and the like stay as configured.

        Args:
            state: the weights, and how many steps they have come, which count from now on.
            optimizer: whether the optimiser's state is taken over, too, or the own one is kept, or
                begun anew.

        Raises:
            CheckpointError: it is of another kind of expert; nothing was changed.
            ExpertFailedError: there was no room for it; the expert is broken until it is restored.
        """
        check_kind(self.uid, state, self.layer.name, self._settings.optimizer)
        weights = weights_of(self.uid, state, self.module)
        moments = moments_in(self.uid, state, self.parameters) if optimizer == "adopt" else {}
        try:
            self.module.load_state_dict(weights)
            if optimizer == "reset":
                self._optimizer = build_optimizer(self.parameters, self._settings)
            elif self._optimizer is not None and optimizer == "adopt":
                groups = self._optimizer.state_dict()["param_groups"]
                self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
                fit_state(self._optimizer, self._settings)
        except Exception as error:  # all of it was checked; there may be no memory, though
            self.broken = f"{self.uid.name} failed while its state was replaced"
            raise ExpertFailedError(f"{self.broken}: {error}") from error
        self.steps, self.rows = state.steps, state.rows
        self.broken = ""

    def move(self, device: torch.device) -> None:
        """Take module and optimiser to another device; when it has no room they stay behind.

        Raises:
            torch.OutOfMemoryError: the device has no room.
        """
        before, self.device = self.device, device
        try:
            self._to(device)
        except torch.OutOfMemoryError:
            self.device = before
            self._to(before)
            raise

    def _to(self, device: torch.device) -> None:
        self.module.to(device)
        if self._optimizer is not None:
            for values in self._optimizer.state.values():
                values |= {
                    name: each.to(device)
                    for name, each in values.items()
                    if isinstance(each, torch.Tensor)
                }

    def release(self, reason: str) -> None:
        """Give its memory back, as another one takes its place; it is broken from now on."""
        self.broken = reason
        self._optimizer = None
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            tensor.data = tensor.new_empty(0)
        self.forget_gradients()

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call the module on tensors of its device, with or without autograd as it is set.

        Raises:
            ExpertFailedError: it does not put out one row for each it takes.
        """
        inputs = [each.to(self.device) for each in inputs]
        positional = len(inputs) - len(self.layer.keywords)
        keywords = dict(zip(self.layer.keywords, inputs[positional:], strict=True))
        result = self.module(*inputs[:positional], **keywords)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        rows = inputs[0].shape[0]  # `len` of a tensor goes a long way round
        if any(output.shape[0] != rows for output in outputs):
            raise ExpertFailedError(f"{self.uid.name} does not put out one row for each it takes")
        return outputs

    def _infer_outputs(self) -> tuple[TensorSpec, ...]:
        limits = {at: spec.shape[at] for spec in self.inputs for at in spec.free}
        small = self._probe(dict.fromkeys(limits, 1))
        large = self._probe(dict.fromkeys(limits, 2)) if limits else small
        # What follows the inputs' free sizes is free itself.
        return tuple(
            TensorSpec(
                meta.dtype,
                (
                    None,
                    *(
                        size if size == other.shape[at] else limits.get(at, size)
                        for at, size in enumerate(meta.shape[1:], 1)
                    ),
                ),
            )
            for meta, other in zip(small, large, strict=True)
        )

    def _probe(self, sizes: Mapping[int, int]) -> list[TensorMeta]:
        """Describe what comes out for a small batch with such free dimensions."""
        probe = [
            torch.zeros(
                spec.with_rows(_PROBE_ROWS, sizes).shape,
                dtype=dtype_of(spec.dtype),
                device=self.device,
            )
            for spec in self.inputs
        ]
        try:
            with torch.no_grad():
                return [meta_of(output) for output in self.run(probe)]
        except Exception as error:
            raise ConfigError(
                f"the layer {self.layer.name} fails on its own inputs: {error}"
            ) from error

    def clip(self) -> None:
        """Check the parameters' gradients, and scale them down to the configured norm.

        Raises:
            ExpertFailedError: they are not finite.
        """
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        if not gradients:
            return
        norms = [torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if not math.isfinite(norm):
            raise ExpertFailedError(f"{self.uid.name} has gradients that are not finite")
        limit = self._settings.clip_grad_norm
        if 0 < limit < norm:
            for gradient in gradients:
                gradient.mul_(limit / norm)

    def step(self, rows: int) -> None:
        """Step the optimiser with the gradients that are there."""
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self._settings, self.steps)
            self._optimizer.step()
        self.steps += 1
        self.rows += rows

    def retune(self, settings: HostingSettings) -> None:
        """Learn with other options from the next step on.

        Args:
            settings: with the same optimiser.

        Raises:
            ExpertFailedError: there is no room for what they need; nothing has changed.
        """
        if self._optimizer is not None:
            with failures([self], "taking other options"):
                retune(self._optimizer, settings)
        self._settings = settings

    def diagnose(self) -> str:
        """Try the expert on inputs of its own, and say what is wrong with it; empty if nothing.

        It takes no step.
        """
        if self.broken:
            return self.broken
        if not all_finite(self.module.state_dict().values()):
            return f"{self.uid.name} has weights that are not finite"
        ones = dict.fromkeys((at for spec in self.inputs for at in spec.free), 1)
        probe = [
            torch.ones(meta.shape, dtype=dtype_of(meta.dtype))
            for meta in (spec.with_rows(_PROBE_ROWS, ones) for spec in self.inputs)
        ]
        try:
            outputs = forward_through([self], probe)
            with torch.enable_grad():
                accumulate_through([self], probe, [torch.ones_like(each) for each in outputs])
            self.clip()
        except ExpertFailedError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # whatever the module raises is its fault
            return f"{self.uid.name} failed on its own inputs: {type(error).__name__}: {error}"
        finally:
            self.forget_gradients()
        return "" if all_finite(outputs) else f"{self.uid.name} has outputs that are not finite"

    def forget_gradients(self) -> None:
        """Free the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def check_usable(self) -> None:
        """Return if the expert was never left in the middle of a step.

        Raises:
            ExpertFailedError: it was.
        """
        if self.broken:
            raise ExpertFailedError(f"{self.broken}; it is restored from its last checkpoint")


def build_backend(
    uid: Uid, settings: HostingSettings, *, outputs: tuple[TensorSpec, ...] | None = None
) -> ExpertBackend:
    """Build a fresh expert; its weights depend on the settings and the uid's name alone.

    So a trainer can build the same expert locally, and the hosts of one uid start alike.

    Args:
        uid: the expert.
        settings: layer and hidden_dim, or model and dtype; optimiser, seed and device.
        outputs: what it puts out, where another expert of the same settings has shown it.

    Raises:
        ConfigError: the layer, the optimiser or the device does not exist, or they do not fit.
        ModelError: the model has no such block, or it cannot be read.
    """
    layer = block_layer(uid, settings) if settings.model else find_layer(settings.layer)
    inputs = check_input_specs(layer, settings.hidden_dim)
    with seeded(settings.seed, uid.name):
        try:
            module = layer.build(settings.hidden_dim)
            module = module.to(settings.device).train()
        except ModelError:
            raise
        except Exception as error:
            raise ConfigError(
                f"cannot build the layer {layer.name} with hidden_dim={settings.hidden_dim} on"
                f" {settings.device}: {error}"
            ) from error
    return ExpertBackend(uid, layer, module, settings, inputs=inputs, outputs=outputs)
