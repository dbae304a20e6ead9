"""What runs inside vLLM's workers when they are given new weights.

Functions of a worker, sent to it by `collective_rpc`. vLLM only logs which parameters it did not
load, so its `load_weights` is watched; and a head that is tied to the embedding is packed anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from actors.vllm_api import reload_keeps_buffers
from actors.weight_sync import tensor_checksum


@dataclass(slots=True)
class Received:
    """What one worker was given in an update."""

    checked: bool
    loaded: set[str] = field(default_factory=set)
    """Parameters that were loaded, by the engine's names."""
    checksums: dict[str, int] = field(default_factory=dict)
    """Of what arrived, by checkpoint name."""
    computed: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    """Copies of buffers that the reload would spoil: the module, the name in it, the values."""
    wrapped: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    """Layers with adapters, out of the model while it loads: the module above, the name, the layer.
    """


def watch(worker: Any, checked: bool) -> None:
    """Begin to note what `load_weights` is given."""
    model = worker.model_runner.get_model()
    received = worker.quartet_received = Received(checked)
    if not reload_keeps_buffers():
        received.wrapped = unwrap(model)
        received.computed = computed_buffers(model)
    load = model.load_weights

    def noted(weights: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if checked:
                received.checksums[name] = tensor_checksum(tensor)
            yield name, tensor

    def counted(weights: Any) -> Any:
        found = load(noted(weights))
        received.loaded.update(found or ())
        return found

    model.load_weights = counted


def unwatch(worker: Any) -> dict[str, int]:
    """Stop, and make whole what a reload leaves alone. Returns the checksums.

    Raises:
        RuntimeError: parameters got no weights.
    """
    model = worker.model_runner.get_model()
    received = worker.quartet_received
    del model.load_weights, worker.quartet_received
    # vLLM puts the layers that take adapters one level down, and loads them as if it had not.
    held = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
    if stale := sorted(held - received.loaded):
        raise RuntimeError(
            f"weight sync: {len(stale)} of the engine's parameters got no weights and would stay "
            f"stale, {', '.join(stale[:3])} among them"
        )
    restore(received.computed)
    for above, name, layer in received.wrapped:
        above._modules[name] = layer
    _pack_tied_heads(model)
    return received.checksums


def unwrap(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put the layers that take adapters back to what the checkpoint names. Returns what was there.

    vLLM 0.24 looks for their weights under the names that they had before it wrapped them.
    """
    wrapped = [
        (above, name, layer)
        for above in model.modules()
        for name, layer in above.named_children()
        if hasattr(layer, "base_layer")
    ]
    for above, name, layer in wrapped:
        above._modules[name] = layer.get_submodule("base_layer")
    return wrapped


def computed_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Buffers that are in no checkpoint, of modules that have weights beside them; a reload does
    not touch other modules.
    """
    return [
        (module, name, getattr(module, name).clone())
        for module in model.modules()
        if any(True for _ in module.parameters(recurse=False))
        for name in sorted(module._non_persistent_buffers_set)
        if getattr(module, name, None) is not None
    ]


def restore(computed: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Put buffers back as they were, where they are: a CUDA graph knows the address."""
    for module, name, values in computed:
        buffer = getattr(module, name)
        buffer.copy_(values)
        module.register_buffer(name, buffer, persistent=False)


def reload(worker: Any, tensors: list[tuple[str, Tensor]]) -> None:
    """Load whole weights that are in this process already."""
    watch(worker, False)
    try:
        worker.reload_weights(weights_iterator=iter(tensors), is_checkpoint_format=True)
    except BaseException:
        del worker.model_runner.get_model().load_weights
        raise
    unwatch(worker)


def leave_group(worker: Any) -> None:
    """Give up the connection to the sender; the next sync makes another."""
    worker.weight_transfer_engine.shutdown()


def _pack_tied_heads(model: Any) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )

    for module in model.modules():
        # A head that is tied to the embedding is not in the checkpoint, so the reload leaves it
        # alone; on a CPU it computes with a packed copy, which would stay the old one.
        if isinstance(module, ParallelLMHead) and isinstance(
            module.quant_method, UnquantizedEmbeddingMethod
        ):
            module.quant_method.process_weights_after_loading(module)
