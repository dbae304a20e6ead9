"""Rewards on the tokens that a critique points at."""

from __future__ import annotations

import random

import numpy as np
import pytest

from trainers.config import PPOConfig
from trainers.data.records import Critique, Finding
from trainers.dense import dense_rewards
from trainers.ppo import PPO

ENDS = (8, 12, 19, 21, 21)
"""of "top-left red circle ." and EOS"""


def bad(span, severity: float = 1.0, verdict: str = "bad") -> Finding:
    return Finding(claim="x", verdict=verdict, span=span, severity=severity)


def test_the_last_token_of_the_span_carries_the_penalty():
    # "red circle" is 9..19: it ends with the third token.
    rewards, unplaced = dense_rewards([bad((9, 19))], ENDS, 5, 0.5)
    assert rewards.tolist() == [0, 0, -0.5, 0, 0] and unplaced == 0
    # "red" 9..12 ends with the second, "re" within it, the whole response with the fourth.
    for span, token in (((9, 12), 1), ((9, 11), 1), ((0, 21), 3), ((0, 1), 0), ((13, 14), 2)):
        rewards, _ = dense_rewards([bad(span)], ENDS, 5, 1.0)
        assert np.flatnonzero(rewards).tolist() == [token]


def test_severities_add_up():
    rewards, _ = dense_rewards([bad((9, 19), 2.0), bad((13, 19), 0.5)], ENDS, 5, 2.0)
    assert rewards.tolist() == [0, 0, -5.0, 0, 0]


def test_only_bad_findings_count_and_those_without_a_place_are_counted():
    findings = [bad((9, 19), verdict="ok"), bad(None), bad(None, verdict="missing")]
    rewards, unplaced = dense_rewards(findings, ENDS, 5, 1.0)
    assert not rewards.any() and unplaced == 1
    assert dense_rewards([bad((9, 19))], (), 5, 1.0)[1] == 1  # token ends were not recorded


@pytest.mark.parametrize("coef", [0.0, 0.25])
def test_ppo_adds_it_to_the_rewards_before_the_advantages(coef, make_scored, samples):
    from dataclasses import replace

    method = PPO(PPOConfig(dense_coef=coef, kl_coef=0.0, gae_lambda=1.0))
    items = []
    for index, score in enumerate((1.0, -1.0)):
        item = make_scored(f"r{index}", samples[0].id, score, token_ids=(9, 9, 9, 9, 1))
        rollout = replace(item.rollout, token_ends=ENDS)
        findings = (bad((9, 19)),) if index else ()
        items.append(replace(item, rollout=rollout, critique=Critique(text="", findings=findings)))
    selection = method.select(items, {samples[0].id: samples[0]}, random.Random(0))
    rows = [row for (row,) in selection.groups]
    for row in rows:
        for name in ("old_logprobs", "ref_logprobs", "old_values"):
            row.tokens[name] = np.zeros(5, dtype=np.float32)
    method.prepare(selection.groups)
    # Scores are standardised to 1 and -1; without values and discount the return of a token is
    # what comes from there on, so the penalty shows up to the third token and not after it.
    assert rows[0].tokens["returns"] == pytest.approx([1.0] * 5, abs=1e-4)
    penalised = [-1.0 - coef] * 3 + [-1.0] * 2
    assert rows[1].tokens["returns"] == pytest.approx(penalised, abs=1e-4)
    assert ("dense/reward" in selection.stats) == bool(coef)
    if coef:
        assert selection.stats["dense/reward"] == -coef
