"""What a method keeps from round to round survives a checkpoint: the next rounds are the same."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from trainers.config import METHODS
from trainers.data.records import Finding
from trainers.registry import make_method

SETTINGS = {"sapo": {"replay_capacity": 7, "replay_draws": 3}, "ppo": {"critic_warmup_rounds": 2}}


def a_round(samples, make_scored, number: int):
    """Four judged answers to each of six prompts, the last one not judged."""
    chance = random.Random(number)
    judged = []
    for sample in samples[:6]:
        for index in range(4):
            ids = (*chance.choices(range(6, 40), k=chance.randint(2, 9)), 1)
            judged.append(
                make_scored(
                    f"r{number}/{sample.id}/{index}",
                    sample.id,
                    chance.gauss(0.0, 3.0) if index < 3 else None,
                    token_ids=ids,
                    text=f"answer {number} {index}",
                    findings=(
                        Finding(claim="a red circle", verdict="bad"),
                        Finding(claim="a blue square", verdict="missing"),
                    ),
                )
            )
    return judged


def step(method, samples, make_scored, number, rng):
    """One round of the loop, as the driver runs it, with made signals. Returns all it decided."""
    by_id = {sample.id: sample for sample in samples}
    selection = method.select(a_round(samples, make_scored, number), by_id, rng)
    for group in selection.groups:
        for row in group:
            length = len(row.response_ids or ()) or 3
            for signal in method.signals:
                row.tokens[signal.name] = np.linspace(-2.0, -1.0, length, dtype=np.float32)
    metrics = method.prepare(selection.groups)
    rows = [[dataclasses.asdict(row) for row in group] for group in selection.groups]
    settings = [method.optimisation(role) for role in method.trained]
    asked = method.ask(samples[0])
    return repr((rows, selection.stats, metrics, settings, asked))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_goes_on_from_its_state(name, samples, make_scored):
    config = METHODS[name](**SETTINGS.get(name, {}))
    whole, first, second = (make_method(config) for _ in range(3))
    rng = random.Random(0)
    decided = [step(whole, samples, make_scored, number, rng) for number in range(1, 5)]
    rng = random.Random(0)
    for number in (1, 2):
        assert step(first, samples, make_scored, number, rng) == decided[number - 1]
    second.load_state(json.loads(json.dumps(first.state())))
    for number in (3, 4):
        assert step(second, samples, make_scored, number, rng) == decided[number - 1]
    if first.state():
        with pytest.raises(KeyError):
            second.load_state({})
    asked = make_method(config).ask(samples[0])
    assert (second.ask(samples[0]) == asked) is second.asks_alike
