"""The trained state of a DeepSpeed engine by parameter names, whoever holds which part of it.

For every trained parameter `name` there are float32 tensors of the whole parameter, flat:

    name/master                      the weights that the optimiser steps
    name/exp_avg, name/exp_avg_sq    its moments, once it has been stepped
    name/step                        how often

Nothing in it says how the state was spread over ranks, so that it can be loaded into another
number of ranks, or another ZeRO stage. Gathering and dealing out move bits and compute nothing:
into equal ranks, the state comes back to the bit. `actors.memory` lists where DeepSpeed 0.19.8
keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MASTER, STEP = "master", "step"
Read = Callable[[str], Tensor]
"""From a tensor's name to the tensor."""


def trained_parameters(engine: Any) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that have gradients, in the module's order."""
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def trained_state(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one parameter after another. All ranks must iterate to the end; each gets
    all tensors.
    """
    view = _view(engine)
    for name, parameter in trained_parameters(engine):
        yield f"{name}/{MASTER}", view.whole(parameter, None)
        for kind, value in view.states(parameter).items():
            if kind == STEP:
                yield f"{name}/{STEP}", torch.as_tensor(value, dtype=torch.float32).reshape(1)
            else:
                yield f"{name}/{kind}", view.whole(parameter, kind)


def load_trained_state(engine: Any, names: set[str], read: Read) -> None:
    """Set weights and optimiser states of a fresh engine. All ranks call it.

    Raises:
        KeyError: a trained parameter has no tensor, or a tensor no parameter; names it.
    """
    parameters = trained_parameters(engine)
    if lacking := [n for n, _ in parameters if f"{n}/{MASTER}" not in names]:
        raise KeyError(f"{lacking[0]}/{MASTER}")
    kinds: dict[str, list[str]] = {}
    for full_name in sorted(names):
        name, _, kind = full_name.rpartition("/")
        kinds.setdefault(name, []).append(kind)
    if unknown := kinds.keys() - {name for name, _ in parameters}:
        raise KeyError(min(unknown))
    view = _view(engine)
    for name, parameter in parameters:
        view.set_weights(parameter, read(f"{name}/{MASTER}"))
        for kind in kinds[name]:
            value = read(f"{name}/{kind}")
            if kind == STEP:
                view.set_step(parameter, float(value))
            elif kind != MASTER:
                view.set_state(parameter, kind, value)


class _Whole:
    """ZeRO 0: every rank has every parameter, with a master of its own under bf16."""

    def __init__(self, engine: Any):
        wrapper = engine.optimizer
        self.inner = getattr(wrapper, "optimizer", wrapper)
        self.masters: dict[int, Tensor] = {}
        if masters := getattr(wrapper, "fp32_groups", None):
            for low, high in zip(wrapper.fp16_groups, masters, strict=True):
                self.masters |= {id(p): master for p, master in zip(low, high, strict=True)}

    def master(self, parameter: nn.Parameter) -> Tensor:
        """What the optimiser steps for this parameter; on this rank, and maybe a part of it."""
        return self.masters.get(id(parameter), parameter)

    def states(self, parameter: nn.Parameter) -> dict[str, Any]:
        """The optimiser's states by kind; empty before the first step."""
        return dict(self.inner.state.get(self.master(parameter), {}))

    def whole(self, parameter: nn.Parameter, kind: str | None) -> Tensor:
        """The master, or a state, of the whole parameter; flat, float32."""
        master = self.master(parameter)
        found = master if kind is None else self.inner.state[master][kind]
        return found.detach().flatten().float()

    def set_weights(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set master and weights."""
        master = self.master(parameter)
        master.data.copy_(value.view_as(master))
        if master is not parameter:
            parameter.data.copy_(master.data)

    def set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Set one state of the whole parameter."""
        master = self.master(parameter)
        state = self.inner.state[master]
        state[kind] = torch.empty_like(master, memory_format=torch.preserve_format)
        state[kind].copy_(value.view_as(master))

    def set_step(self, parameter: nn.Parameter, value: float) -> None:
        """Set the number of steps, in the type that the optimiser counts in."""
        counts_in_tensors = type(self.inner).__module__.startswith("torch.")
        step = torch.tensor(value, dtype=torch.float32) if counts_in_tensors else int(value)
        self.inner.state[self.master(parameter)][STEP] = step


class _Flat(_Whole):
    """ZeRO 1 and 2: a rank steps one flat piece of all parameters in a group."""

    def __init__(self, engine: Any):
        super().__init__(engine)
        wrapper = engine.optimizer
        self.flat = {
            id(parameter): (flat, group)
            for parameters, flat, group in zip(
                wrapper.bit16_groups,
                wrapper.single_partition_of_fp32_groups,
                wrapper.real_dp_process_group,
                strict=True,
            )
            for parameter in parameters
        }

    def master(self, parameter: nn.Parameter) -> Tensor:
        """This rank's flat piece, which may have nothing of the parameter."""
        return self.flat[id(parameter)][0]

    def _own(self, parameter: nn.Parameter, flat: Tensor) -> tuple[slice, Tensor] | None:
        """Which elements of the parameter this rank steps, and where they are in `flat`."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
        return slice(low.start, low.start + low.numel), flat.narrow(0, high.start, high.numel)

    def whole(self, parameter: nn.Parameter, kind: str | None) -> Tensor:
        """Gathered from the ranks."""
        flat, group = self.flat[id(parameter)]
        source = flat if kind is None else self.inner.state[flat][kind]
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if own := self._own(parameter, source.detach()):
            whole[own[0]].copy_(own[1])
        if torch.distributed.get_world_size(group) > 1:
            # As integers: added as floats, -0.0 of one rank and 0.0 of the others would be 0.0.
            torch.distributed.all_reduce(whole.view(torch.int32), group=group)
        return whole

    def set_weights(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set this rank's piece of the master, and all of the weights."""
        if own := self._own(parameter, self.master(parameter).data):
            own[1].copy_(value[own[0]])
        parameter.data.copy_(value.view_as(parameter))

    def set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Set this rank's piece of one state."""
        flat = self.master(parameter)
        state = self.inner.state[flat]
        if kind not in state:
            state[kind] = torch.zeros_like(flat.data)
        if own := self._own(parameter, state[kind]):
            own[1].copy_(value[own[0]])


class _Partitioned(_Whole):
    """ZeRO 3: a rank holds and steps a piece of every parameter."""

    def __init__(self, engine: Any):
        super().__init__(engine)
        self.wrapper = engine.optimizer

    def master(self, parameter: nn.Parameter) -> Tensor:
        """This rank's flat piece of the parameter's sub-group."""
        wrapper = self.wrapper
        group, _, _ = wrapper.grad_position[wrapper.get_param_id(parameter)]
        flat: Tensor = wrapper.fp32_partitioned_groups_flat[group]
        return flat

    def whole(self, parameter: nn.Parameter, kind: str | None) -> Tensor:
        """Gathered from the ranks."""
        whole: Tensor = self.wrapper.get_full_hp_param(parameter, kind)
        return whole.flatten()

    def set_weights(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set this rank's pieces of master and weights."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value.view_as(parameter))
        self._set(parameter, None, value)

    def set_state(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Set this rank's piece of one state."""
        flat = self.master(parameter)
        state = self.inner.state[flat]
        if kind not in state:
            state[kind] = torch.zeros_like(flat.data)
        self._set(parameter, kind, value)

    def _set(self, parameter: nn.Parameter, kind: str | None, value: Tensor) -> None:
        piece, _ = self.wrapper._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=kind
        )
        # Of the last rank's piece the end may be padding.
        start = piece.numel() * torch.distributed.get_rank()
        own = value.flatten()[start : start + piece.numel()]
        piece.data[: own.numel()].copy_(own)


def _view(engine: Any) -> _Whole:
    stage = engine.zero_optimization_stage()
    return (_Whole, _Flat, _Flat, _Partitioned)[stage](engine)
