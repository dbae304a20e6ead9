"""Fixtures of many tests: a random tiny LLaVA folder, images, prompts, and records by hand."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest

from trainers.data.images import ImageStore
from trainers.data.records import Critique, Finding, Rollout, Sample, ScoredRollout

STARTED_WITH = dict(os.environ)


@pytest.fixture(scope="session")
def started_with() -> dict[str, str]:
    """The environment that pytest was started in, for processes that a user would start: Ray and
    the engines leave theirs in this process, a debugger's hook among it.
    """
    return STARTED_WITH


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a LLaVA with random weights, as transformers and vLLM load it."""
    from trainers.data.drawn_model import build_model, build_processor, save_pretrained_folder

    folder = tmp_path_factory.mktemp("tiny-llava")
    save_pretrained_folder(build_model(0), build_processor(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def samples(store: ImageStore) -> list[Sample]:
    """Twelve prompts of all three kinds, one image each."""
    from trainers.data.scenes import scene_samples

    return list(scene_samples(3, 12, store.put_image))


@pytest.fixture(scope="session")
def processing(tiny_model: str, store: ImageStore):
    from trainers.data.processing import Processing

    return Processing(tiny_model, store)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small text model with a chat template, which was taught one reply."""
    from tests.tiny_text_model import save_text_model

    folder = tmp_path_factory.mktemp("text-model")
    save_text_model(folder)
    return str(folder)


@pytest.fixture
def make_scored() -> Callable[..., ScoredRollout]:
    """`make_scored("r0", "sample", 1.5)`: a judged rollout; a score of None is a failure."""

    def make(
        id: str,
        sample_id: str,
        score: float | None,
        *,
        text: str | None = None,
        token_ids: tuple[int, ...] = (21, 14, 1),
        finish_reason: str = "stop",
        findings: tuple[Finding, ...] = (),
    ) -> ScoredRollout:
        rollout = Rollout(
            id=id,
            sample_id=sample_id,
            text=text or f"response {id}",
            token_ids=token_ids,
            logprobs=(-1.0,) * len(token_ids),
            policy_version=1,
            seed=0,
            temperature=1.0,
            finish_reason=finish_reason,  # type: ignore[arg-type]
            prompt_tokens=30,
        )
        return ScoredRollout(
            rollout=rollout,
            judge="hand",
            score=score,
            failure="broken" if score is None else None,
            critique=Critique(text="", findings=findings) if findings else None,
        )

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Any]:
    """`make_batch(mask_BR, ref_logprobs=..., margin=[...])`: what a loss sees of a batch. A tensor
    is a signal per token, a list one per row.
    """
    import torch

    from trainers.batch import Batch

    def make(mask_BR: Any, **signals: Any) -> Batch:
        empty = torch.zeros(0)
        return Batch(
            input_ids_BT=torch.zeros(mask_BR.shape, dtype=torch.long),
            attention_mask_BT=empty,
            positions_N3=empty,
            targets_N=empty,
            last_B=empty,
            mask_BR=mask_BR,
            model_inputs={},
            tokens={n: v for n, v in signals.items() if isinstance(v, torch.Tensor)},
            scalars={n: torch.tensor(v) for n, v in signals.items() if isinstance(v, list)},
        )

    return make


@pytest.fixture(scope="session")
def connected_actor():
    """One `TrainActor` in this process for all tests: DeepSpeed cannot join a second group. One
    thread: two that wait for each other at every operation are no faster on a model so small.
    """
    import torch

    from actors.train import TrainActor

    actor = TrainActor(num_threads=1)
    actor.connect(*actor.address())
    yield actor
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def train_actor(connected_actor):
    """That actor for one module; what it held is gone afterwards."""
    from torch.nn import functional

    linear = functional.linear
    # Each load collects garbage: not among what is there for good, such as all that was imported.
    gc.collect()
    gc.freeze()
    yield connected_actor
    connected_actor.unload()
    functional.linear = linear  # ZeRO-3 leaves its own there, for the whole process


@pytest.fixture(scope="session")
def shared_session(tmp_path_factory: pytest.TempPathFactory):
    """One Ray and one process a role for all tests: starting vLLM anew would take longer."""
    from cluster.console import Console
    from cluster.offline import go_offline
    from cluster.session import Session

    go_offline()
    log = tmp_path_factory.mktemp("session") / "run.log"
    with (
        Console(log, interactive=False) as console,
        Session(num_threads=1, console=console) as session,
    ):
        yield session
