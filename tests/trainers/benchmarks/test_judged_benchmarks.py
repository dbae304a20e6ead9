"""MMHal-Bench and MM-RLHF's RewardBench: ratings, pairs, and what a failing judge does to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.benchmarks.mmhal import MMHal, parse_rating
from trainers.benchmarks.questions import Answer, Options
from trainers.benchmarks.reward_bench import (
    Pair,
    read_pairs,
    reward_bench_metrics,
    score_file,
)
from trainers.data.errors import UserError


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: 5, very informative", 5),
        ("rating: 0", 0),
        ("RATING: 6", 6),
        ("Rating: 3 or Rating: 4", None),
        ("Rating: 3. So, rating: 3", 3),
        ("Rating 3", None),
        ("Rating: 7", None),
        ("", None),
    ],
)
def test_rating_in_a_judges_text(text, rating):
    assert parse_rating(text) == rating


def mmhal(folder: Path, number: int = 4) -> MMHal:
    rows = []
    for index in range(number):
        (folder / f"{index}.jpg").touch()
        rows.append(
            {
                "question_type": ("attribute", "adversarial")[index % 2],
                "question_topic": "food",
                "image_id": str(index),
                "image_src": f"https://somewhere/{index}.jpg",
                "image_content": ["Dog"],
                "question": f"What? {index}",
                "gt_answer": "A dog.",
                "model_answer": "",
            }
        )
    (folder / "response_template.json").write_text(json.dumps(rows))
    return MMHal(folder, Options())


def rated(*scores: float | None) -> list[Answer]:
    return [Answer(text=f"a{i}", num_tokens=2, score=s) for i, s in enumerate(scores)]


def test_mmhal_by_hand(tmp_path):
    values = mmhal(tmp_path).metrics(rated(6, 2, 3, 0))
    assert values["mmhal_score"] == values["mmhal_score_unrated_as_0"] == 11 / 4
    assert values["mmhal_hallucination_rate"] == 0.5
    assert values["mmhal_informativeness"] == pytest.approx((3 + 2 + 0 + 0) / 12)
    assert values["mmhal_attribute"] == 4.5 and values["mmhal_adversarial"] == 1.0


def test_mmhal_never_counts_a_failure_as_a_rating(tmp_path):
    values = mmhal(tmp_path).metrics(rated(6, None, 7.5, 4))
    assert values["mmhal_unrated"] == 2.0
    assert values["mmhal_score"] == 5.0
    assert values["mmhal_score_unrated_as_0"] == 2.5  # what the original scripts would print


def test_mmhal_writes_the_template_filled_in(tmp_path):
    bench = mmhal(tmp_path, 2)
    (text,) = bench.answer_files(rated(1, 2)).values()
    rows = json.loads(text)
    assert [row["model_answer"] for row in rows] == ["a0", "a1"]
    assert rows[1]["gt_answer"] == "A dog."
    assert bench.questions[0].truth["image_content"] == ["Dog"]


def pair(query: str, category: str = "long") -> Pair:
    return Pair(group=query, category=category, image=None, prompt="p", chosen="c", rejected="r")


def test_acc_and_acc_plus_by_hand():
    pairs = [pair("a"), pair("a"), pair("b"), pair("c", "mcq"), pair("c", "mcq")]
    scores = [(2.0, 1.0), (3.0, 1.0), (1.0, 1.0), (5.0, 1.0), (0.0, 1.0)]
    values = reward_bench_metrics(pairs, scores)
    assert values["acc"] == pytest.approx(3 / 5)  # the tie is wrong
    assert values["acc_plus"] == pytest.approx(1 / 3)  # only query a is right in all its pairs
    assert values["acc_long"] == pytest.approx(2 / 3) and values["acc_plus_long"] == 0.5
    assert values["acc_mcq"] == 0.5 and values["acc_plus_mcq"] == 0.0


def test_pairs_that_the_judge_failed_on_are_left_out():
    values = reward_bench_metrics([pair("a"), pair("a"), pair("b")], [(2.0, 1.0), None, (1.0, 2.0)])
    assert values["acc"] == 0.5 and values["acc_plus"] == 0.0  # query a cannot be counted
    assert values["failed_pairs"] == 1.0


def test_reward_bench_reads_its_file(tmp_path):
    (tmp_path / "mcq").mkdir()
    (tmp_path / "mcq/1.jpg").touch()
    row = {"id": 1, "prompt": "<image>\nWhat?", "chosen": "a", "rejected": "b"}
    rows = [row | {"image": "mcq/1.jpg"}, row | {"video": "video/2", "image": None}]
    path = tmp_path / "mm_reward_bench.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    pairs, videos = read_pairs(tmp_path, None)
    assert videos == 1
    assert pairs[0].category == "mcq" and pairs[0].prompt == "What?"
    line = json.loads(score_file(pairs, [(2.0, 1.0)]))
    assert line["rewards"] == [2.0, 1.0] and line["image"] == "mcq/1.jpg"
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match="no pair with an image"):
        read_pairs(tmp_path, None)
