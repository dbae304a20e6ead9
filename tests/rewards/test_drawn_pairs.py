"""Preference data for the judge: labels follow the ground truth, ties are dropped."""

from __future__ import annotations

from collections import Counter

from rewards.critique import quality
from rewards.drawn_pairs import PreferenceExample, preference_examples
from trainers.data.records import Sample
from trainers.data.scenes import Mixture, caption, scene_from_truth, scene_samples

MIXTURE = Mixture(describe=0.5, question=0.25)


def samples(count: int) -> list[Sample]:
    return list(scene_samples(1, count, lambda image: "image", mixture=MIXTURE))


def truth_of(sample: Sample) -> str:
    assert sample.truth is not None
    return sample.truth["answer"] or caption(scene_from_truth(sample.truth))


def pairs(count: int, **options: float) -> list[PreferenceExample]:
    prompts = [(s, [truth_of(s), "nonsense"]) for s in samples(count)]
    return list(preference_examples(prompts, 0, **options))  # type: ignore[arg-type]


def test_chosen_has_fewer_errors_and_critiques_belong_to_texts() -> None:
    found = pairs(200)
    assert len(found) > 190
    assert {e.sample.kind for e in found} == {"describe", "question", "exists"}
    for e in found:
        assert e.sample.truth is not None
        prompt = e.sample.prompt[-1].text
        better, worse = (
            quality(e.sample.truth, e.sample.kind, prompt, text) for text in (e.chosen, e.rejected)
        )
        assert better > worse
        assert better == -sum(f.verdict in ("bad", "missing") for f in e.chosen_critique.findings)
        assert worse == -sum(f.verdict in ("bad", "missing") for f in e.rejected_critique.findings)


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
