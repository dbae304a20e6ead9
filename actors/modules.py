"""The three ways a VLM is used in training: as policy or reference, as critic, as reward model.

Each module wraps the whole forward, so that DeepSpeed's hooks see every parameter, and returns
`Outputs` at the target tokens only. The language head is applied to target positions, in chunks
(`trainers.logprobs`), so that full logits never exist.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from actors.forward import hidden_states
from trainers.batch import Batch
from trainers.logprobs import CHUNK_SIZE, greedy_tokens, pad_targets, token_logprobs
from trainers.method import Outputs

HEAD_FILE = "reward/score_head.safetensors"
"""In a folder of its own: vLLM would load every safetensors file beside the weights."""
REWARD_FILE = "reward/reward.json"


def load_vlm(model_dir: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A Hugging Face VLM with dropout off everywhere (otherwise the first PPO ratio is not 1)."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=dtype, attn_implementation=attention(model_dir, dtype)
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):  # where attention is a function
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.untyped_storage().resizable():
            # A view of the mapped file: memory of its own can be emptied and filled again.
            tensor.data = tensor.data.clone()
    return model


def attention(model_dir: str | Path, dtype: torch.dtype) -> str | None:
    """FlashAttention where the package is there, for a half-precision model on a GPU that has it;
    None otherwise: transformers takes PyTorch's SDPA, or `eager` for a model without either.
    """
    if find_spec("flash_attn") is None or dtype not in (torch.bfloat16, torch.float16):
        return None
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return None
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(model_dir)
    kind = AutoModelForImageTextToText._model_mapping[type(config)]
    return "flash_attention_2" if getattr(kind, "_supports_flash_attn", False) else None


class PolicyModule(nn.Module):
    """Log-probabilities of the target tokens: the policy, and (frozen) the reference."""

    def __init__(
        self,
        vlm: Any,
        *,
        banned_ids: list[int],
        temperature: float = 1.0,
        chunk_size: int = CHUNK_SIZE,
    ):
        super().__init__()
        self.vlm = vlm
        self.temperature = temperature
        self.chunk_size = chunk_size
        self.register_buffer("banned_ids", torch.tensor(banned_ids), persistent=False)

    def forward(self, batch: Batch, *, with_entropy: bool = False, greedy: bool = False) -> Outputs:
        """Log-probabilities of the target tokens, (B, R); entropies too if asked for. With `greedy`
        the likeliest tokens at those places instead, as `tokens_BR`.
        """
        rows_N, places_N, _ = batch.positions_N3.unbind(1)
        hidden_NH = hidden_states(self.vlm, batch).at(rows_N, places_N)
        if greedy:
            banned = self.get_buffer("banned_ids")
            tokens_N = greedy_tokens(
                hidden_NH, self.vlm.lm_head, banned_ids=banned, chunk_size=self.chunk_size
            )
            shape = batch.mask_BR.shape
            return Outputs(tokens_BR=pad_targets(tokens_N, batch.positions_N3, shape))
        logprobs_N, entropy_N = token_logprobs(
            hidden_NH,
            self.vlm.lm_head,
            batch.targets_N,
            temperature=self.temperature,
            banned_ids=self.get_buffer("banned_ids"),
            chunk_size=self.chunk_size,
            with_entropy=with_entropy,
        )
        shape = batch.mask_BR.shape
        logprobs_BR = pad_targets(logprobs_N, batch.positions_N3, shape)
        if entropy_N is None:
            return Outputs(logprobs_BR=logprobs_BR)
        return Outputs(
            logprobs_BR=logprobs_BR, entropy_BR=pad_targets(entropy_N, batch.positions_N3, shape)
        )


class Float32Linear(nn.Linear):
    """Computes in float32 whatever dtype it is held in: under bf16 DeepSpeed holds every parameter
    in bf16, with a float32 master.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Linear's name
        """Shape (..., out), float32."""
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(input.float(), self.weight.float(), bias)


class CriticModule(nn.Module):
    """Value of the state before each target token: VLM backbone and a linear head in float32.

    The head starts at zero, so that the first values are 0 and not noise.
    """

    def __init__(self, vlm: Any):
        super().__init__()
        self.vlm = vlm
        vlm.lm_head = nn.Identity()
        self.head = Float32Linear(vlm.config.get_text_config().hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> Outputs:
        """Values before each target token, (B, R)."""
        rows_N, places_N, _ = batch.positions_N3.unbind(1)
        hidden_NH = hidden_states(self.vlm, batch).at(rows_N, places_N)
        values_N = self.head(hidden_NH)[:, 0]
        return Outputs(values_BR=pad_targets(values_N, batch.positions_N3, batch.mask_BR.shape))


class ScoreHead(nn.Module):
    """MM-RLHF's score head without dropout: Linear, tanh, Linear; the last layer starts at zero."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = Float32Linear(hidden_size, hidden_size)
        self.out = Float32Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """Scores (B,) of hidden states (B, H)."""
        scores_B1: Tensor = self.out(torch.tanh(self.dense(hidden_BH)))
        return scores_B1[:, 0]


class RewardModule(nn.Module):
    """Critique-based reward model (MM-RLHF): one backbone, LM head and score head.

    `scores_B` is read at the last real token of `[image, prompt, response, request, critique]`;
    `logprobs_BR` are those of the critique's tokens.
    """

    def __init__(self, vlm: Any, head: ScoreHead):
        super().__init__()
        self.vlm = vlm
        self.head = head

    def forward(self, batch: Batch) -> Outputs:
        """Scores (B,), and log-probabilities of the critique's tokens (B, R)."""
        hidden = hidden_states(self.vlm, batch)
        rows_B = torch.arange(batch.num_rows, device=batch.last_B.device)
        last_BH = hidden.at(rows_B, batch.last_B)
        rows_N, places_N, _ = batch.positions_N3.unbind(1)
        hidden_NH = hidden.at(rows_N, places_N)
        logprobs_N, _ = token_logprobs(hidden_NH, self.vlm.lm_head, batch.targets_N)
        return Outputs(
            scores_B=self.head(last_BH),
            logprobs_BR=pad_targets(logprobs_N, batch.positions_N3, batch.mask_BR.shape),
        )


def load_reward_module(folder: str | Path, dtype: torch.dtype = torch.float32) -> RewardModule:
    """A reward model from its folder; without a saved head (a plain VLM) the head is new."""
    vlm = load_vlm(folder, dtype)
    head = ScoreHead(vlm.config.get_text_config().hidden_size)
    file = Path(folder) / HEAD_FILE
    if file.is_file():
        head.load_state_dict(load_file(file))
    return RewardModule(vlm, head)


def save_score_head(module: RewardModule, folder: str | Path, settings: dict[str, Any]) -> None:
    """Write head and settings (critique request) into the backbone's Hugging Face folder."""
    (Path(folder) / HEAD_FILE).parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in module.head.state_dict().items()},
        Path(folder) / HEAD_FILE,
    )
    (Path(folder) / REWARD_FILE).write_text(json.dumps(settings, indent=2) + "\n")
