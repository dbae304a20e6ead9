"""Log-probabilities of wanted tokens: the one function behind policy, old policy, reference, SFT.

Axes: B rows, T sequence, R target tokens of a row (padded), N target tokens of all rows (flat),
V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_SIZE = 512
"""Target tokens whose logits exist at once, unless a run says otherwise."""


def shift_targets(input_ids_BT: Tensor, target_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where to read the hidden states that predict the marked tokens, and those tokens.

    The hidden state at position t predicts the token at t + 1. This function does that shift, and
    nothing else may: callers mark the tokens themselves (EOS included), everywhere.

    Args:
        input_ids_BT: token ids, as the model sees them (image placeholders expanded).
        target_mask_BT: true at each token whose logprob is wanted. Position 0 has no predictor.

    Returns:
        positions_N3: (row, t - 1, column) for each marked token (row, t), in row-major order;
            column counts the row's marked tokens from 0.
        targets_N: the marked tokens' ids.
    """
    mask_BT = target_mask_BT.bool()
    if input_ids_BT.shape != mask_BT.shape:
        raise ValueError(f"ids {tuple(input_ids_BT.shape)} and mask {tuple(mask_BT.shape)} differ")
    if bool(mask_BT[:, :1].any()):
        raise ValueError("target_mask marks position 0, which no position predicts")
    rows_N, places_N = mask_BT.nonzero(as_tuple=True)
    columns_N = (mask_BT.cumsum(1) - 1)[mask_BT]
    return torch.stack([rows_N, places_N - 1, columns_N], dim=1), input_ids_BT[mask_BT]


def token_logprobs(
    hidden_NH: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    banned_ids: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Logprob of each target: log softmax(head(hidden) / temperature), float32, in chunks.

    Banned ids get logit -inf before the softmax, so the distribution equals that of a sampler that
    cannot emit them. Full logits (N, V) never exist: under grad each chunk's logits are computed
    again in the backward. The result does not depend on `chunk_size`. With N = 0 the result is
    empty but connected to the graph, so that every rank runs the same backward.

    Limiting case: a head of zeros gives -log(V - number of banned ids) for every target.

    Args:
        hidden_NH: hidden states at the positions of `shift_targets`.
        head: maps (n, H) to logits (n, V); deterministic (no dropout).
        targets_N: ids whose logprob is wanted.
        temperature: the sampler's temperature; above 0.
        banned_ids: 1-D ids that the sampler cannot emit; as a target their logprob is -inf, which
            `trainers.data.processing` refuses when it encodes a row.
        with_entropy: also return the distribution's entropy at each position.

    Returns:
        logprobs_N and entropy_N (or None), both float32 and differentiable.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if banned_ids is not None and banned_ids.numel() == 0:
        banned_ids = None

    def chunk_logprobs(hidden_nH: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        logits_nV = head(hidden_nH).float() / temperature
        if banned_ids is not None:
            logits_nV = logits_nV.index_fill(-1, banned_ids, -torch.inf)
        logprobs_nV = logits_nV.log_softmax(-1)
        logprobs_n = logprobs_nV.gather(-1, targets_n[:, None]).squeeze(-1)
        if not with_entropy:
            return logprobs_n, logprobs_n.new_zeros(0)
        # 0 * -inf is nan: a banned id contributes p log p = 0.
        finite_nV = logprobs_nV.masked_fill(logprobs_nV == -torch.inf, 0.0)
        return logprobs_n, -(logprobs_nV.exp() * finite_nV).sum(-1)

    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for start in range(0, max(len(targets_N), 1), chunk_size):
        chunk = (hidden_NH[start : start + chunk_size], targets_N[start : start + chunk_size])
        if torch.is_grad_enabled():
            part = checkpoint(chunk_logprobs, *chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            part = chunk_logprobs(*chunk)
        logprobs.append(part[0])
        entropies.append(part[1])
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


@torch.no_grad()
def greedy_tokens(
    hidden_NH: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    banned_ids: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The likeliest token after each hidden state, banned ids left out, in chunks; int64 (N,).

    Limiting case: a head whose logits are equal gives the smallest id that is not banned.
    """
    tokens = [hidden_NH.new_zeros(0, dtype=torch.long)]
    for start in range(0, len(hidden_NH), chunk_size):
        logits_nV = head(hidden_NH[start : start + chunk_size]).float()
        if banned_ids is not None and banned_ids.numel():
            logits_nV = logits_nV.index_fill(-1, banned_ids, -torch.inf)
        tokens.append(logits_nV.argmax(-1))
    return torch.cat(tokens)


def pad_targets(values_N: Tensor, positions_N3: Tensor, shape: Sequence[int]) -> Tensor:
    """Flat values in the order of `shift_targets`, one row per sequence, padded with 0.

    Args:
        values_N: one value per target.
        positions_N3: as `shift_targets` returns them.
        shape: (B, R), R at least the most targets of any row; a row without one is all padding.

    Returns:
        values_BR, differentiable in values_N.
    """
    empty_BR = values_N.new_zeros(*shape)
    return empty_BR.index_put((positions_N3[:, 0], positions_N3[:, 2]), values_N)
