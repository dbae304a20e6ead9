"""A text model on vLLM that writes for others: errors into answers, corrective turns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine import _checkpoint_weights, _seed
from actors.engine_memory import EngineMemory
from actors.ledger import PhaseMeter, Reading
from actors.process_settings import settle
from trainers.data.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """What to load and how large the engine may be."""

    model_dir: str
    max_model_len: int = 2048
    max_tokens: int = 512
    """Longest reply."""
    temperature: float = 0.8
    top_p: float = 0.95
    """Both as BPO samples its rewritten answers."""
    kv_cache_mib: int = 128
    gpu_memory_utilization: float = 0.2
    bf16: bool = False


def check_text_model(model_dir: str, key: str) -> None:
    """Refuse a folder that vLLM cannot load as a chat model.

    Raises:
        UserError: what is missing, naming the setting.
    """
    folder = Path(model_dir)
    for names in (("config.json",), ("tokenizer.json", "tokenizer.model")):
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"{key}={model_dir}: no {' or '.join(names)}; give a Hugging Face text model folder"
            )
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{key}={model_dir}: no safetensors weights; convert the checkpoint")


class TextActor:
    """Replies to plain requests; each is one user turn of the model's own chat template."""

    def __init__(self, *, num_threads: int | None = None):
        settle(num_threads)
        self._llm: Any = None
        self.meter = PhaseMeter()

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import vllm  # noqa: F401

    def load(self, spec: TextSpec) -> None:
        """Start the engine, in place of an earlier one."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import torch
        from vllm import LLM

        self.unload()
        self.spec = spec
        on_gpu = torch.cuda.is_available()
        options = (
            {"gpu_memory_utilization": spec.gpu_memory_utilization}
            if on_gpu
            else {"kv_cache_memory_bytes": spec.kv_cache_mib * 2**20}
        )
        self._llm = LLM(
            spec.model_dir,
            dtype="bfloat16" if spec.bf16 else "float32",
            enforce_eager=not on_gpu,
            distributed_executor_backend="uni",
            max_model_len=spec.max_model_len,
            disable_log_stats=True,
            **options,
        )
        size = _checkpoint_weights(Path(spec.model_dir))[1]
        self._memory = EngineMemory(self._llm, size, on_gpu=on_gpu)
        self._tokenizer = self._llm.get_tokenizer()
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{spec.model_dir}: the tokenizer has no chat template; give a chat model"
            )

    def unload(self) -> None:
        """Shut the engine down."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self.meter.forget()

    def reply(self, requests: Sequence[str], *, seed: int) -> list[str | None]:
        """One reply each; None for a request that leaves no room for one. Equal seeds, requests and
        weights give equal replies.
        """
        from vllm import SamplingParams

        prompts, slots = [], []
        for index, request in enumerate(requests):
            ids = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": request}],
                add_generation_prompt=True,
                return_dict=False,
            )
            if len(ids) + self.spec.max_tokens <= self.spec.max_model_len:
                prompts.append({"prompt_token_ids": list(ids)})
                slots.append(index)
        replies: list[str | None] = [None] * len(requests)
        if not prompts:
            return replies
        params = SamplingParams(
            temperature=self.spec.temperature,
            top_p=self.spec.top_p,
            max_tokens=self.spec.max_tokens,
        )
        self._llm.collective_rpc(_seed, args=(seed,))
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for index, output in zip(slots, outputs, strict=True):
            replies[index] = output.outputs[0].text
        return replies

    def end_phase(self, phase: str) -> Reading:
        """This process's memory in the phase that ends now, for the ledger."""
        held = self.memory()
        return self.meter.read(phase, {"writer": held} if held else {})

    def memory(self) -> dict[str, int]:
        """Bytes of the engine: the loop's shared row `writer`."""
        return {} if self._llm is None else self._memory.on_device()
