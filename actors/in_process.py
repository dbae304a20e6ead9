"""Writing with a model that is in this process anyway, instead of with an engine of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from actors.engine import Generated, Request
from trainers.data.processing import Processing


class Writer(Protocol):
    """Anything that samples answers; the engine does."""

    def generate(
        self, requests: Sequence[Request], *, temperature: float, max_tokens: int, seed: int = 0
    ) -> list[list[Generated] | str]:
        """Answers to every request, or its reason for having none."""


class InProcessWriter:
    """transformers' `generate` over a loaded VLM: slower than an engine, and no second copy.

    Rows of equal length go together, so that nothing is padded: an answer then does not depend on
    what it was batched with.
    """

    def __init__(self, vlm: Any, processing: Processing, max_model_len: int):
        self.vlm, self.processing, self.max_model_len = vlm, processing, max_model_len

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], *, temperature: float, max_tokens: int, seed: int = 0
    ) -> list[list[Generated] | str]:
        """As `Engine.generate`; `logprobs` stay empty, which no judge asks for."""
        results: list[list[Generated] | str] = [""] * len(requests)
        groups: dict[tuple[int, int], list[int]] = {}
        encoded = []
        for index, request in enumerate(requests):
            row = self.processing.encode(
                f"request {index}", request.turns, request.images, response_ids=()
            )
            encoded.append(row)
            length = len(row.input_ids)
            if length + max_tokens > self.max_model_len:
                results[index] = (
                    f"prompt of {length} tokens (images expanded) and {max_tokens} response tokens "
                    f"exceed rollout.max_model_len={self.max_model_len}"
                )
                continue
            groups.setdefault((length, request.n), []).append(index)
        torch.manual_seed(seed)
        for (length, number), indices in sorted(groups.items()):
            rows = [encoded[index] for index in indices]
            ids = torch.stack([torch.from_numpy(row.input_ids) for row in rows])
            inputs = self.processing.merge([row.model_inputs for row in rows])
            inputs |= self.processing.token_inputs(ids)
            output = self.vlm.generate(
                input_ids=ids.to(self.vlm.device),
                attention_mask=torch.ones_like(ids).to(self.vlm.device),
                **{name: tensor.to(self.vlm.device) for name, tensor in inputs.items()},
                **_sampling(temperature),
                max_new_tokens=max_tokens,
                num_return_sequences=number,
                suppress_tokens=self.processing.banned_ids(),
                pad_token_id=self.processing.pad_id,
                eos_token_id=self.processing.eos_id,
            )
            sampled = output[:, length:].tolist()
            for place, index in enumerate(indices):
                part = sampled[place * number : (place + 1) * number]
                results[index] = [self._generated(tokens, length) for tokens in part]
        return results

    def _generated(self, tokens: list[int], prompt_tokens: int) -> Generated:
        eos = self.processing.eos_id
        stopped = eos in tokens
        kept = tokens[: tokens.index(eos) + 1] if stopped else tokens
        text = self.processing.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Generated(tuple(kept), (), text, "stop" if stopped else "length", prompt_tokens)


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
