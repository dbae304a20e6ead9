"""Preference data for the judge: labels follow the ground truth, ties are dropped."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from rewards.critique import CRITIQUE_REQUEST, parse_critique, quality, write_critique
from rewards.drawn_pairs import (
    MAX_ERRORS,
    PreferenceExample,
    corrupt,
    critique_conversations,
    preference_examples,
)
from trainers.data.drawn_model import WORDS
from trainers.data.records import Sample
from trainers.data.scenes import (
    COLORS,
    NUMBERS,
    POSITIONS,
    Mixture,
    caption,
    scene_from_truth,
    scene_samples,
)

MIXTURE = Mixture(describe=0.5, question=0.25)


def samples(count: int, mixture: Mixture = MIXTURE) -> list[Sample]:
    return list(scene_samples(1, count, lambda image: "image", mixture=mixture))


def truth_of(sample: Sample) -> str:
    assert sample.truth is not None
    return sample.truth["answer"] or caption(scene_from_truth(sample.truth))


def quality_of(sample: Sample, text: str) -> float:
    assert sample.truth is not None
    return quality(sample.truth, sample.kind, sample.prompt[-1].text, text)


def pairs(count: int, **options: float) -> list[PreferenceExample]:
    prompts = [(s, [truth_of(s), "nonsense"]) for s in samples(count)]
    return list(preference_examples(prompts, 0, **options))  # type: ignore[arg-type]


def test_chosen_has_fewer_errors_and_critiques_belong_to_texts() -> None:
    found = pairs(200)
    assert len(found) > 190
    assert {e.sample.kind for e in found} == {"describe", "question", "exists"}
    for e in found:
        assert e.sample.truth is not None
        assert quality_of(e.sample, e.chosen) > quality_of(e.sample, e.rejected)
        prompt = e.sample.prompt[-1].text
        sides = ((e.chosen, e.chosen_critique), (e.rejected, e.rejected_critique))
        for text, critique in sides:
            assert critique == write_critique(e.sample.truth, e.sample.kind, prompt, text)


def test_own_share_decides_where_texts_come_from() -> None:
    own_only = pairs(50, own_share=1.0)
    assert {e.rejected for e in own_only} == {"nonsense"}
    assert all(e.chosen == truth_of(e.sample) for e in own_only)
    assert "nonsense" not in {e.rejected for e in pairs(50, own_share=0.0)}


def test_a_prompt_whose_responses_always_tie_gives_nothing() -> None:
    prompts = [(s, [truth_of(s)]) for s in samples(20)]
    assert list(preference_examples(prompts, 0, own_share=1.0)) == []


def test_seeded_and_several_pairs_per_prompt() -> None:
    assert pairs(20) == pairs(20)
    counts = Counter(e.sample.id for e in pairs(20, pairs_per_prompt=3))
    assert max(counts.values()) == 3


def test_a_corrupted_caption_has_at_most_one_error_an_injection() -> None:
    rng = random.Random(0)
    scores = [quality_of(s, corrupt(s, rng)) for s in samples(300, Mixture(describe=1.0))]
    assert set(scores) == {-float(n) for n in range(MAX_ERRORS + 1)}


def test_a_corrupted_answer_is_right_half_of_the_time_and_of_the_same_sort() -> None:
    rng = random.Random(0)
    answers = [(truth_of(s), corrupt(s, rng)) for s in samples(600, Mixture(describe=0.0))]
    # three standard errors of a half over 600 draws are 0.06
    assert abs(sum(true == said for true, said in answers) / len(answers) - 0.5) < 0.07
    for true, said in answers:
        assert any({true, said} <= {*sort} for sort in (COLORS, POSITIONS, NUMBERS, ("yes", "no")))
        if true in NUMBERS:
            assert abs(NUMBERS.index(true) - NUMBERS.index(said)) <= 1


def test_critique_conversations_end_in_the_true_critique() -> None:
    examples = list(itertools.islice(critique_conversations(0), 64))
    right = 0
    for example in examples:
        prompt, response, request, critique = example.turns
        assert [turn.role for turn in example.turns] == ["user", "assistant"] * 2
        assert [turn.num_images for turn in example.turns] == [1, 0, 0, 0]
        assert request.text == CRITIQUE_REQUEST
        findings = parse_critique(critique.text, response.text)
        right += all(finding.verdict in ("ok", "absent") for finding in findings)
        words = f"{prompt.text} {response.text} {critique.text}".split()
        assert set(words) <= set(WORDS)
    assert 0 < right < len(examples)  # some responses keep their truth, most do not
    assert len({example.image.tobytes() for example in examples}) == 64


def test_critique_conversations_are_seeded() -> None:
    def turns(seed: int) -> list[object]:
        return [e.turns for e in itertools.islice(critique_conversations(seed), 5)]

    assert turns(0) == turns(0) != turns(1)
