"""The rollout worker: a vLLM engine that answers prompts about images."""

from __future__ import annotations

import random
from collections.abc import Sequence

from actors.answers import DroppedSample, SegmentSettings, encode_answers, resample_segments
from actors.choices import choose
from actors.engine import Engine, EngineSpec, Request
from actors.inbox import Meeting
from actors.ledger import PhaseMeter, Reading
from actors.process_settings import settle
from actors.progress import note
from actors.sending import Parcel
from actors.transports import Reach
from actors.vllm_api import transfer_backends, vllm_version
from actors.weight_sync import Bucket, open_bucket
from rewards.asking import Failed, Prompt
from trainers.conditions import RolloutCopy
from trainers.data.noise import ImageNoise
from trainers.data.records import Rollout, Sample, Source


class RolloutActor:
    """Samples responses from the current policy; counts the weight syncs it received."""

    def __init__(self, *, num_threads: int | None = None):
        settle(num_threads)
        self._engine: Engine | None = None
        self.meter = PhaseMeter()

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import vllm  # noqa: F401

    def load(self, spec: EngineSpec) -> None:
        """Start the engine, in place of an earlier one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self.meter.forget()
        self._engine = Engine(spec)
        note("load: engine started")

    @property
    def engine(self) -> Engine:
        """The engine that `load` started."""
        assert self._engine is not None, "call load first"
        return self._engine

    def generate(
        self,
        samples: Sequence[Sample],
        *,
        num_rollouts_per_prompt: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        prefix: str = "",
        noise_step: int | None = None,
    ) -> tuple[list[Rollout], list[DroppedSample]]:
        """Several responses per sample, drawn under the same settings: only chance differs.

        A sample that does not fit, or whose image cannot be read, is dropped with its reason. With
        a `noise_step` the images are distorted by one draw per sample (`trainers.data.noise`).
        """
        engine = self.engine
        requests: list[Request] = []
        kept: list[Sample] = []
        dropped: list[DroppedSample] = []
        for sample in samples:
            try:
                engine.processing.images(sample.images)
            except ValueError as error:
                dropped.append(DroppedSample(sample.id, str(error)))
                continue
            noise = None if noise_step is None else ImageNoise(noise_step, sample.id)
            own = answer_seed(seed, sample.id) if engine.spec.seeds == "answer" else None
            requests.append(
                Request(
                    sample.prompt,
                    sample.images,
                    num_rollouts_per_prompt,
                    noise=noise,
                    id=sample.id,
                    seed=own,
                )
            )
            kept.append(sample)
        note(f"generate: read {len(requests)} prompts")
        answers = engine.generate(
            requests, temperature=temperature, max_tokens=max_tokens, seed=seed
        )
        note(f"generate: answered {len(requests)} prompts")
        rollouts: list[Rollout] = []
        for sample, answer in zip(kept, answers, strict=True):
            if isinstance(answer, str):
                dropped.append(DroppedSample(sample.id, answer))
                continue
            rollouts += [
                Rollout(
                    id=f"{prefix}{sample.id}/{number}",
                    sample_id=sample.id,
                    text=item.text,
                    token_ids=item.token_ids,
                    logprobs=item.logprobs,
                    policy_version=engine.version,
                    seed=seed,
                    temperature=temperature,
                    finish_reason="stop" if item.finish_reason == "stop" else "length",
                    prompt_tokens=item.prompt_tokens,
                    source="policy" if noise_step is None else "noisy",
                    token_ends=item.token_ends,
                )
                for number, item in enumerate(answer)
            ]
        return rollouts, dropped

    def encode_answers(
        self, answers: Sequence[tuple[Sample, str]], source: Source, prefix: str = ""
    ) -> tuple[list[Rollout], list[DroppedSample]]:
        """Given texts as rollouts (`actors.answers.encode_answers`)."""
        return encode_answers(self.engine, answers, source, prefix)

    def resample_segments(
        self, rollouts: Sequence[tuple[Sample, Rollout]], settings: SegmentSettings, prefix: str
    ) -> tuple[list[Rollout], list[DroppedSample]]:
        """The rollouts with a piece sampled anew (`actors.answers.resample_segments`)."""
        return resample_segments(self.engine, rollouts, settings, prefix)

    def choose(
        self, prompts: Sequence[Prompt], words: Sequence[str]
    ) -> list[dict[str, float] | Failed]:
        """Ask the policy as it is now: see `actors.choices.choose`. A judge may."""
        return choose(self.engine, prompts, words)

    def update_weights(self, buckets: Sequence[Bucket], version: int | None = None) -> int:
        """Load all buckets of one sync as the weights `version`, by default one more than before.
        Returns the new policy version.
        """
        tensors = []
        for number, bucket in enumerate(buckets):
            tensors += open_bucket(bucket)
            note(f"update_weights: opened bucket {number + 1} of {len(buckets)}")
        loaded = self.engine.update_weights(tensors, version)
        note(f"update_weights: loaded version {loaded}")
        return loaded

    def reach(self) -> Reach:
        """What there is here for weights to come by."""
        import torch

        return Reach(torch.cuda.is_available(), vllm_version(), transfer_backends())

    def open_update(self, meeting: Meeting | None, *, checked: bool) -> None:
        """Begin to take weights without the object store (`actors.inbox`)."""
        self.engine.open_update(meeting, checked=checked)
        note("open_update: ready")

    def receive(self, parcel: Parcel) -> None:
        """Take one bucket of them."""
        self.engine.receive(parcel)
        note(f"receive: took up to {parcel.names[-1]}")

    def close_update(self, version: int) -> int:
        """They have all come. Returns the version."""
        return self.engine.close_update(version)

    def forget_requests(self) -> None:
        """Empty the engine's caches."""
        self.engine.memory.forget_requests()

    def sleep(self) -> int:
        """Send the engine off the device until `wake_up`. Returns the bytes moved."""
        self.meter.note("rollout_engine", self.engine.memory.on_device())
        return self.engine.sleep()

    def wake_up(self) -> int:
        """Bring the engine back. Returns the bytes moved."""
        return self.engine.wake_up()

    def end_phase(self, phase: str) -> Reading:
        """This process's memory in the phase that ends now, for the ledger."""
        if self._engine is None:
            return self.meter.read(phase, {})
        memory = self.engine.memory
        return self.meter.read(
            phase,
            {"rollout_engine": memory.on_device()},
            {"rollout_engine": memory.in_host()},
            unmapped={"rollout_engine": memory.unmapped()},
        )

    def conditions(self) -> RolloutCopy | None:
        """What the engine runs under; None without one."""
        return None if self._engine is None else self._engine.conditions()

    def memory(self) -> dict[str, int]:
        """Bytes of the engine, wherever they are: the loop's shared row `rollout_engine`."""
        if self._engine is None:
            return {}
        return self.engine.memory.everywhere()


def answer_seed(seed: int, sample_id: str) -> int:
    """The seed of a sample's first answer, whatever else is asked in the same call; vLLM counts on
    from it for the others.
    """
    return random.Random(f"{seed}/{sample_id}").randrange(2**31 - 2**16)
