"""The self-check's pairs and its arithmetic."""

from __future__ import annotations

from rewards.base import Judgement
from rewards.critique import quality
from rewards.rules import RandomJudge
from rewards.sanity import check, count_right, drawn_pairs, pair_items, recorded_pairs
from trainers.data.records import Sample, Turn
from trainers.data.scenes import scene_samples


def drawn(number: int = 60):
    return list(scene_samples(5, number, lambda image: "h"))


class Oracle:
    """Judges by the ground truth."""

    name = "oracle"

    def judge(self, items):
        return [
            Judgement(
                score=quality(
                    item.sample.truth,
                    item.sample.kind,
                    item.sample.prompt[-1].text,
                    item.rollout.text,
                )
            )
            for item in items
        ]


def test_every_prompt_of_the_drawn_world_has_a_known_pair():
    pairs = drawn_pairs(drawn(), 0)
    assert len(pairs) >= 58
    for pair in pairs:
        args = pair.sample.truth, pair.sample.kind, pair.sample.prompt[-1].text
        assert quality(*args, pair.good) == 0 > quality(*args, pair.bad)


def test_the_truth_gets_all_right_and_chance_half():
    pairs = drawn_pairs(drawn(400), 0)
    assert check(Oracle(), pairs).accuracy == 1.0
    assert abs(check(RandomJudge(0), pairs).accuracy - 0.5) < 0.1  # four standard errors


def test_ties_are_worth_a_coin_and_failures_nothing():
    # right, wrong, tie, failure: (1 + 0.5) / 4
    result = count_right([2.0, 1.0, 1.0, 2.0, 3.0, 3.0, None, 1.0])
    assert (result.right, result.ties, result.failures, result.num_pairs) == (1, 1, 1, 4)
    assert result.accuracy == 0.375


def test_recorded_pairs_need_both_answers():
    def sample(id, chosen, rejected):
        prompt = (Turn(role="user", text="?"),)
        return Sample(id=id, prompt=prompt, chosen=chosen, rejected=rejected)

    samples = [
        sample("a", "x", "y"), sample("b", "x", None), sample("c", "x", "x"), sample("d", "p", "q"),
    ]  # fmt: skip
    assert [pair.sample.id for pair in recorded_pairs(samples, 9)] == ["a", "d"]
    assert len(recorded_pairs(samples, 1)) == 1
    assert recorded_pairs([], 3) == []
    items = pair_items(recorded_pairs(samples, 1))
    assert [item.rollout.text for item in items] == ["x", "y"]
