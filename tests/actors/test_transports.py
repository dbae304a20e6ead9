"""Which way weights can go, what vLLM's versions are asked, and what leaves a trainer's process."""

from __future__ import annotations

import importlib
import inspect
import itertools
import socket
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import engine_adapter, segments, vllm_api
from actors.sending import NcclOutbox, Outbox
from actors.transports import Reach, choose
from actors.weight_sync import tensor_checksum
from trainers.data.errors import UserError

HERE, THERE = frozenset({(0, 0)}), frozenset({(0, 1)})
GPU = Reach(cuda=True, vllm="0.32.0", backends=frozenset({"ipc", "nccl"}))
CPU = Reach(cuda=False, vllm="0.32.0", backends=frozenset({"ipc", "nccl"}))
OLD = Reach(cuda=True, vllm="0.20.0", backends=frozenset())


@pytest.mark.parametrize(
    ("reach", "rollout", "takes_turns", "expected", "why"),
    [
        (GPU, HERE, False, "ipc", "vLLM 0.32.0 has it"),
        (GPU, THERE, False, "nccl", "the placement allows it"),
        (GPU, THERE, True, "nccl", "the placement allows it"),
        (GPU, HERE, True, "object_store", "train.time_slice has one"),
        (GPU, HERE | THERE, False, "object_store", "on every GPU of an engine; NCCL needs"),
        (OLD, HERE, False, "object_store", "vLLM 0.20.0 has no weight-transfer engine ipc"),
        (CPU, HERE, False, "object_store", "there is no GPU"),
        (GPU, frozenset(), False, "object_store", "there is no GPU"),
    ],
)
def test_auto_takes_the_cheapest_that_works(reach, rollout, takes_turns, expected, why):
    choice = choose("auto", reach, policy=HERE, rollout=rollout, takes_turns=takes_turns)
    assert choice.transport == expected and why in choice.why


def test_one_reason_is_said_once():
    choice = choose("auto", CPU, policy=HERE, rollout=HERE)
    assert str(choice) == "through host memory (object store); there is no GPU"


@pytest.mark.parametrize(
    ("asked", "rollout", "why"),
    [
        ("nccl", HERE, "policy and engine share one"),
        ("ipc", THERE, "a rank of the policy on every GPU"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(asked, rollout, why):
    with pytest.raises(UserError, match=f"train.transport={asked}: .*{why}"):
        choose(asked, GPU, policy=HERE, rollout=rollout)


GPUS = st.frozensets(st.tuples(st.integers(0, 1), st.integers(0, 2)), max_size=4)


@given(GPUS, GPUS, st.booleans(), st.booleans())
def test_auto_never_takes_what_would_be_refused(policy, rollout, cuda, takes_turns):
    reach = Reach(cuda, "0.32.0", GPU.backends)
    placed = {"policy": policy, "rollout": rollout, "takes_turns": takes_turns}
    chosen = choose("auto", reach, **placed).transport
    assert choose(chosen, reach, **placed).transport == chosen


def test_the_allocators_other_settings_stay():
    assert segments.with_segments("", True) == "expandable_segments:True"
    conf = "max_split_size_mb:128,expandable_segments:True"
    assert segments.with_segments(conf, False) == "max_split_size_mb:128,expandable_segments:False"


def test_an_engine_that_sleeps_has_no_expandable_segments(monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    segments.without_segments()
    assert segments.allocator_conf() == "max_split_size_mb:128"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    assert segments.allocator_conf() == "expandable_segments:False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_without_a_gpu_no_allocator_is_touched(monkeypatch):
    monkeypatch.setattr(segments, "_set", lambda expandable: pytest.fail("it was"))
    segments.expand_segments()
    with segments.ordinary_segments():
        pass


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("place", "method", "names"),
    [
        (place, method, names)
        for place, methods in vllm_api.SIGNATURES.items()
        for method, names in methods.items()
    ],
)
def test_the_installed_vllm_has_the_calls(place, method, names):
    module, kind = place.split(":")
    function = getattr(getattr(importlib.import_module(module), kind), method)
    signature = inspect.signature(function)
    kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    assert kwargs or set(names) <= set(signature.parameters)
    required = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    assert set(required) <= {"self", *names}


@pytest.mark.vllm
def test_the_installed_vllm_takes_what_it_is_told():
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCWeightTransferInitInfo,
        IPCWeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLWeightTransferInitInfo,
        NCCLWeightTransferUpdateInfo,
    )

    assert vllm_api.transfer_backends() >= {"ipc", "nccl"}
    tensors = (["a"], ["float32"], [(2, 3)])
    update = vllm_api.ipc_update(*tensors, [24], {"GPU-1": ("args",)})
    assert IPCWeightTransferUpdateInfo(**update).tensor_sizes == [24]
    # one of the two says that tensors come packed, by version
    beginning = vllm_api.ipc_beginning()
    IPCWeightTransferInitInfo(**beginning)
    assert (beginning | update)["packed"] is True
    assert NCCLWeightTransferUpdateInfo(**vllm_api.nccl_update(*tensors)).shapes == [[2, 3]]
    NCCLWeightTransferInitInfo(**vllm_api.nccl_beginning("10.0.0.1", 2345, 1, 3))


def test_names_of_layers_come_from_either_kind_of_map():
    class OfNames:
        """As in vLLM 0.24."""

    class OfStacksToo:
        def get_rename_mapper(self) -> str:
            return "names alone"

    names = OfNames()
    assert vllm_api.layer_names(SimpleNamespace()) is None
    assert vllm_api.layer_names(SimpleNamespace(hf_to_vllm_mapper=names)) is names
    assert vllm_api.layer_names(SimpleNamespace(hf_to_vllm_mapper=OfStacksToo())) == "names alone"


def test_adapters_on_a_tower_are_refused_in_one_line_before_vllm_serves_them(monkeypatch):
    monkeypatch.setattr(engine_adapter, "vllm_version", lambda: "0.24.0")
    with pytest.raises(UserError, match=r"vLLM 0\.24\.0 serves no adapters .*lora_sync=merged"):
        engine_adapter.engine_options("folder", 8, vision=True)


def test_versions_before_the_oldest_are_refused():
    for version in ("0.24.0", "0.32.0", "1.0", "0.33.0rc1", ""):
        vllm_api.require_supported(version)
    with pytest.raises(UserError, match=r"vLLM 0\.23\.1 is installed; Quartet works with 0\.24"):
        vllm_api.require_supported("0.23.1")


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(4, 40), st.booleans())
def test_parcels_hold_every_tensor_once_and_in_order(sizes, most, checked):
    tensors = [(f"w{i}", torch.arange(size).float()) for i, size in enumerate(sizes)]
    outbox = Outbox(iter(tensors), torch.device("cpu"), most, checked=checked)
    parcels = list(itertools.takewhile(bool, iter(outbox.next_parcel, None)))
    assert [name for parcel in parcels for name in parcel.names] == [name for name, _ in tensors]
    for parcel in parcels:
        assert sum(parcel.sizes) <= most or len(parcel.sizes) == 1
        assert parcel.dtypes == ("float32",) * len(parcel.names)
        expected = tuple(tensor_checksum(dict(tensors)[name]) for name in parcel.names)
        assert parcel.checksums == (expected if checked else None)
    assert outbox.current == []


def test_a_checksum_is_of_the_bytes():
    ones = torch.ones(4, dtype=torch.bfloat16)
    assert tensor_checksum(ones) == tensor_checksum(ones.view(2, 2).T)
    assert tensor_checksum(ones) != tensor_checksum(ones.float())
    assert tensor_checksum(torch.tensor(1.0)) == tensor_checksum(torch.ones(1))
    assert tensor_checksum(torch.zeros(0)) == 0


def test_a_closed_outbox_holds_no_weights():
    tensors = [(f"w{i}", torch.ones(4)) for i in range(3)]
    held = weakref.ref(tensors[2][1])
    outbox = Outbox(iter(tensors), torch.device("cpu"), 16, checked=False)
    outbox.next_parcel()  # one is in the bucket, the next was looked at
    del tensors
    assert held() is not None
    outbox.close()
    assert held() is None and outbox.next_parcel() is None


def test_an_nccl_outbox_says_where_it_is_met():
    outbox = NcclOutbox(iter(()), torch.device("cpu"), 1, checked=False)
    host, port = outbox.address
    assert host and 1024 <= port < 2**16
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("", port))  # nobody else gets the port
    outbox.close()
    with socket.socket() as other:
        other.bind(("", port))


@pytest.mark.vllm
def test_vllms_group_listens_at_the_port_that_was_held(monkeypatch):
    from vllm.distributed.device_communicators import pynccl

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(pynccl, "PyNcclCommunicator", lambda group, device: group)
    outbox = NcclOutbox(iter(()), torch.device("cpu"), 1, checked=False)
    outbox.meet(1)
    assert outbox._group.world_size == 1
    with socket.create_connection(outbox.address, timeout=5):
        pass  # it is there
    outbox.close()


def test_adam_is_fused_on_a_gpu_and_deepspeeds_own_in_host_memory(monkeypatch):
    from actors.train_spec import TrainSpec, deepspeed_config

    def params(**settings: object) -> dict[str, object]:
        spec = TrainSpec(role="policy", model_dir="m", image_root="i", **settings)
        return deepspeed_config(spec, 100)["optimizer"]["params"]

    assert params()["torch_adam"] and "fused" not in params()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert params()["fused"] is True
    assert "fused" not in params(muon_ratio=10.0)
    offloaded = params(zero_stage=2, offload_optimizer="cpu")
    assert not offloaded["torch_adam"] and "fused" not in offloaded
