"""Axes: B rows, T sequence, R target tokens, N flat targets, V vocabulary, H hidden."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from trainers.logprobs import pad_targets, shift_targets, token_logprobs

V, H = 11, 5


def make(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(H, V, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, H, generator=generator))
    hidden_NH = torch.randn(n, H, generator=generator)
    return hidden_NH, head, torch.randint(0, V - 2, (n,), generator=generator)


def test_shift_targets_by_hand():
    ids_BT = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0]])
    # Row 0 wants tokens 7 and 8 (at 2, 3), predicted at 1, 2; row 1 wants token 3 (at 2), from 1.
    mask_BT = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]])
    positions, targets_N = shift_targets(ids_BT, mask_BT)
    assert positions.tolist() == [[0, 1, 0], [0, 2, 1], [1, 1, 0]]
    assert targets_N.tolist() == [7, 8, 3]


def test_shift_targets_counts_eos_even_where_pad_has_the_same_id():
    eos = pad = 2
    ids_BT = torch.tensor([[4, 5, eos, pad, pad]])
    _, targets_N = shift_targets(ids_BT, torch.tensor([[0, 1, 1, 0, 0]]))
    assert targets_N.tolist() == [5, eos]


def test_shift_targets_refuses_position_zero_and_a_shape_mismatch():
    with pytest.raises(ValueError, match="position 0"):
        shift_targets(torch.tensor([[1, 2]]), torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="differ"):
        shift_targets(torch.tensor([[1, 2]]), torch.tensor([[1]]))


def test_logprobs_read_through_shift_are_those_of_the_next_token():
    # A "model" whose hidden state at t is the one-hot of token t + 1 predicts perfectly.
    ids_BT = torch.tensor([[3, 1, 4, 0]])
    hidden_BTV = torch.zeros(1, 4, V)
    hidden_BTV[0, :3] = torch.nn.functional.one_hot(ids_BT[0, 1:], V).float() * 50
    positions, targets_N = shift_targets(ids_BT, torch.tensor([[0, 1, 1, 1]]))
    logprobs_N, _ = token_logprobs(
        hidden_BTV[positions[:, 0], positions[:, 1]], lambda x: x, targets_N
    )
    assert_close(logprobs_N, torch.zeros(3))


def test_token_logprobs_by_hand_with_temperature_and_ban():
    # Logits ln 1, ln 4, ln 9 at temperature 2: weights 1, 2, 3 of 6.
    logits_NV = torch.tensor([[1.0, 4.0, 9.0]]).log()
    targets_N = torch.tensor([1])
    logprobs_N, entropy_N = token_logprobs(
        logits_NV, lambda x: x, targets_N, temperature=2.0, with_entropy=True
    )
    assert logprobs_N.item() == pytest.approx(math.log(2 / 6))
    weights = (1 / 6, 2 / 6, 3 / 6)
    assert entropy_N is not None
    assert entropy_N.item() == pytest.approx(-sum(p * math.log(p) for p in weights))
    # Without the last id: weights 1, 2 of 3.
    logprobs_N, entropy_N = token_logprobs(
        logits_NV,
        lambda x: x,
        targets_N,
        temperature=2.0,
        banned_ids=torch.tensor([2]),
        with_entropy=True,
    )
    assert logprobs_N.item() == pytest.approx(math.log(2 / 3))
    assert entropy_N is not None
    assert entropy_N.item() == pytest.approx(-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3))


def test_a_head_of_zeros_is_uniform_over_what_is_allowed():
    logprobs_N, _ = token_logprobs(
        torch.zeros(3, H),
        lambda x: x.new_zeros(len(x), V),
        torch.tensor([0, 1, 2]),
        banned_ids=torch.tensor([9, 10]),
    )
    assert_close(logprobs_N, torch.full((3,), -math.log(V - 2)))


def test_bad_arguments_are_refused():
    hidden_NH, head, targets_N = make(2)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(hidden_NH, head, targets_N, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_size"):
        token_logprobs(hidden_NH, head, targets_N, chunk_size=0)


def test_an_empty_ban_list_bans_nothing():
    hidden_NH, head, targets_N = make(3)
    plain = token_logprobs(hidden_NH, head, targets_N)[0]
    assert_close(token_logprobs(hidden_NH, head, targets_N, banned_ids=torch.tensor([]))[0], plain)


def test_no_targets_give_an_empty_result_that_still_has_a_backward():
    hidden_NH, head, _ = make(0)
    logprobs_N, entropy_N = token_logprobs(
        hidden_NH.requires_grad_(), head, torch.zeros(0, dtype=torch.long), with_entropy=True
    )
    assert logprobs_N.shape == (0,) and entropy_N is not None and entropy_N.shape == (0,)
    logprobs_N.sum().backward()
    assert head.weight.grad is not None and float(head.weight.grad.abs().sum()) == 0


def test_result_is_float32_for_a_bfloat16_model():
    hidden_NH, head, targets_N = make(4)
    logprobs_N, _ = token_logprobs(hidden_NH.bfloat16(), head.bfloat16(), targets_N)
    assert logprobs_N.dtype == torch.float32


def test_full_logits_are_never_kept_for_the_backward():
    hidden_NH, head, targets_N = make(64)
    calls: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return head(x)

    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        logprobs_N, _ = token_logprobs(
            hidden_NH.requires_grad_(), counted, targets_N, chunk_size=16
        )
    assert calls == [16] * 4
    assert max(saved, default=0) < 64 * V
    logprobs_N.sum().backward()
    assert calls == [16] * 8  # each chunk is computed once more


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), chunk=st.integers(1, 12), banned=st.booleans(), seed=st.integers(0, 99))
def test_chunk_size_changes_neither_values_nor_gradients(n, chunk, banned, seed):
    hidden_NH, head, targets_N = make(n, seed)
    banned_ids = torch.tensor([V - 1, V - 2]) if banned else None

    def run(chunk_size: int):
        head.zero_grad()
        leaf_NH = hidden_NH.clone().requires_grad_()
        logprobs_N, entropy_N = token_logprobs(
            leaf_NH,
            head,
            targets_N,
            temperature=0.7,
            banned_ids=banned_ids,
            chunk_size=chunk_size,
            with_entropy=True,
        )
        assert entropy_N is not None
        (logprobs_N.sum() + 0.3 * entropy_N.sum()).backward()
        return logprobs_N.detach(), entropy_N.detach(), leaf_NH.grad, head.weight.grad.clone()

    logits_NV = head(hidden_NH).detach() / 0.7
    if banned:
        logits_NV[:, -2:] = -torch.inf
    expected_N = logits_NV.log_softmax(-1)[torch.arange(n), targets_N]
    assert_close(run(chunk)[0], expected_N)
    assert_close(run(chunk), run(10_000))
    with torch.no_grad():
        plain_N, _ = token_logprobs(
            hidden_NH, head, targets_N, temperature=0.7, banned_ids=banned_ids, chunk_size=chunk
        )
    assert_close(plain_N, expected_N)


def test_a_banned_target_has_probability_zero():
    hidden_NH, head, _ = make(2)
    targets_N = torch.tensor([1, 10])
    logprobs_N, _ = token_logprobs(hidden_NH, head, targets_N, banned_ids=torch.tensor([10]))
    assert torch.isfinite(logprobs_N[0]) and logprobs_N[1] == -torch.inf


def test_pad_targets_by_hand():
    positions_N3 = torch.tensor([[0, 1, 0], [0, 2, 1], [2, 4, 0]])
    values_BR = pad_targets(torch.tensor([1.0, 2.0, 3.0]), positions_N3, (3, 2))
    assert values_BR.tolist() == [[1, 2], [0, 0], [3, 0]]


def test_pad_targets_passes_gradients():
    values_N = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    positions_N3 = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1]])
    values_BR = pad_targets(values_N, positions_N3, (2, 2))
    (values_BR * torch.tensor([[2.0, 5.0], [3.0, 4.0]])).sum().backward()
    assert_close(values_N.grad, torch.tensor([2.0, 3.0, 4.0]))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), width=st.integers(2, 6), extra=st.integers(0, 3))
def test_shift_and_pad_keep_order_and_ignore_padding(data, rows, width, extra):
    mask = data.draw(
        st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows
        )
    )
    mask_BT = torch.tensor(mask)
    mask_BT[:, 0] = False
    ids_BT = torch.arange(rows * width).reshape(rows, width)
    positions, targets_N = shift_targets(ids_BT, mask_BT)
    values_BR = pad_targets(targets_N.float(), positions, (rows, width))
    for row, count in enumerate(mask_BT.sum(1)):
        assert values_BR[row, :count].tolist() == ids_BT[row][mask_BT[row]].tolist()
        assert not values_BR[row, count:].any()
    padded = torch.nn.functional.pad
    again, targets_again_N = shift_targets(
        padded(ids_BT, (0, extra), value=-1), padded(mask_BT, (0, extra), value=False)
    )
    assert_close(again, positions)
    assert_close(targets_again_N, targets_N)
