"""vLLM's own weight update, begun, fed and finished by us, on a CPU.

vLLM's NCCL and IPC engines need GPUs. Here a transfer engine of the test's own takes their place,
which is handed the tensors themselves; everything else is what runs on a GPU: vLLM's lifecycle of
an update in its worker, the layerwise reload, our parcels, names and checksums.
"""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from trainers.batch import Row

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed]


def start(self: Any, spec: Any) -> None:
    """In the engine's process: make a vLLM engine with a transfer engine called `host`."""
    from vllm.distributed.weight_transfer import factory
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader import reload

    class HostEngine(WeightTransferEngine):
        init_info_cls = make_dataclass("Init", [], bases=(WeightTransferInitInfo,))
        update_info_cls = make_dataclass(
            "Update", [("tensors", list)], bases=(WeightTransferUpdateInfo,)
        )

        def init_transfer_engine(self, init_info: Any) -> None:
            self.updates = 0

        def start_weight_update(self) -> None:
            reload.initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Any, load_weights: Any = None) -> None:
            # vLLM 0.24's worker hands over what is to be called, and its own lifecycle is used.
            self.updates += 1
            (load_weights or self.model.load_weights)(update_info.tensors)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # vLLM's own waits for an accelerator, of which there is none (0.24's worker, below).
            self.receive_weights(self.parse_update_info(update_info))

        def finish_weight_update(self) -> None:
            reload.finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            pass

        def trainer_send_weights(self) -> None:
            """Abstract in vLLM 0.24."""

    if "host" not in factory.WeightTransferEngineFactory._registry:
        factory.WeightTransferEngineFactory.register_engine("host", HostEngine)
    if not torch.accelerator.is_available():
        torch.accelerator.synchronize = lambda: None
    self.load(replace(spec, transport="host"))


def update(self: Any, folder: str, version: int, harm: str = "") -> int:
    """In the engine's process: what a direct sync asks of it, with the weights of `folder`."""
    from actors.inbox import Inbox
    from actors.modules import load_vlm
    from actors.sending import Outbox
    from actors.weight_sync import checkpoint_tensors

    engine = self.engine
    tensors = dict(checkpoint_tensors(load_vlm(folder)))
    if harm == "lost":
        tensors.pop(next(name for name in tensors if "layers.0" in name))
    outbox = Outbox(iter(tensors.items()), torch.device("cpu"), 2**20, checked=True)

    def describe(parcel: Any) -> dict[str, Any]:
        return {"tensors": outbox.current}

    engine._inbox = Inbox(engine.llm, {}, describe, checked=True)
    while parcel := outbox.next_parcel():
        if harm == "corrupt":
            name, tensor = outbox.current[0]
            outbox.current[0] = (name, tensor + 1)
        self.receive(parcel)
    result: int = self.close_update(version)
    return result


@pytest.fixture(scope="module")
def receiver(shared_session, tiny_model, store):
    from actors.engine import EngineSpec

    spec = EngineSpec(model_dir=tiny_model, image_root=str(store.root), max_model_len=128)
    actor = shared_session.actor("rollout")
    ray.get(actor.__ray_call__.remote(start, spec))
    return actor


@pytest.fixture(scope="module")
def changed(tiny_model, tmp_path_factory) -> str:
    """A folder of the same model with other weights."""
    from actors.modules import load_vlm
    from trainers.data.drawn_model import build_processor, save_pretrained_folder

    folder = tmp_path_factory.mktemp("changed")
    vlm = load_vlm(tiny_model)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_pretrained_folder(vlm, build_processor(), folder)
    return str(folder)


def gap(session: Any, folder: str, root: str, samples: Any, receiver: Any) -> tuple[float, int]:
    """Mean |engine logprob - trainer logprob| of `folder`'s weights, and the engine's version."""
    from actors.train_spec import TrainSpec

    session.load_trainer("policy", TrainSpec(role="policy", model_dir=folder, image_root=root))
    rollouts, _ = ray.get(
        receiver.generate.remote(
            samples, num_rollouts_per_prompt=1, temperature=1.0, max_tokens=12, seed=0
        )
    )
    by_id = {sample.id: sample for sample in samples}
    rows = [Row.of_response(by_id[r.sample_id], r.token_ids, r.id) for r in rollouts]
    trained = session.trainer("policy").score_rows(rows)
    gaps = [np.abs(np.array(r.logprobs) - t) for r, t in zip(rollouts, trained, strict=True)]
    return float(np.concatenate(gaps).mean()), rollouts[0].policy_version


def test_an_update_in_parcels_is_whole_and_fresh(
    shared_session, receiver, tiny_model, changed, store, samples
):
    few, root = samples[:4], str(store.root)
    assert gap(shared_session, tiny_model, root, few, receiver)[0] < 1e-4  # and fills the caches
    assert gap(shared_session, changed, root, few, receiver)[0] > 1e-3
    assert ray.get(receiver.__ray_call__.remote(update, changed, 5)) == 5
    found, version = gap(shared_session, changed, root, few, receiver)
    assert found < 1e-4 and version == 5


def test_what_was_corrupted_on_the_way_is_found_and_sent_again(
    shared_session, receiver, tiny_model, changed, store, samples
):
    from actors.weight_sync import CorruptBucketError

    with pytest.raises(CorruptBucketError, match="corrupted in transit"):
        ray.get(receiver.__ray_call__.remote(update, tiny_model, 6, "corrupt"))
    # The engine is whole, if wrong: all weights through the object store make it right.
    shared_session.load_trainer("policy", _spec(tiny_model, store))
    buckets = shared_session.trainer("policy").call("weight_buckets", 2**20)[0]
    ray.get(receiver.update_weights.remote(buckets, 6))
    assert gap(shared_session, tiny_model, str(store.root), samples[:4], receiver)[0] < 1e-4


def test_a_parameter_that_never_came_is_named(receiver, changed):
    with pytest.raises(RuntimeError, match=r"would stay stale, .*layers\.0"):
        ray.get(receiver.__ray_call__.remote(update, changed, 7, "lost"))


def _spec(folder: str, store: Any) -> Any:
    from actors.train_spec import TrainSpec

    return TrainSpec(role="policy", model_dir=folder, image_root=str(store.root))
