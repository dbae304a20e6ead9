import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.corrections import correction_from
from trainers.data.records import (
    Critique,
    Finding,
    PreferencePair,
    Rollout,
    ScoredRollout,
    Turn,
)

PROMPT = (Turn(role="user", text="describe the image .", num_images=1),)


def scored(name: str, findings, text: str = "a caption .") -> ScoredRollout:
    rollout = Rollout(
        id=name,
        sample_id="s",
        text=text,
        token_ids=(1,),
        logprobs=(0.0,),
        policy_version=0,
        seed=0,
        temperature=1.0,
        finish_reason="stop",
        prompt_tokens=3,
    )
    found = [f if isinstance(f, Finding) else Finding(claim=f[0], verdict=f[1]) for f in findings]
    critique = Critique(text="", findings=tuple(found))
    return ScoredRollout(rollout=rollout, judge="test", score=0.0, critique=critique)


def correct(rejected, chosen=(), *, text="a caption .", prompt=PROMPT, **options):
    pair = PreferencePair(
        sample_id="s",
        chosen=scored("c", chosen),
        rejected=scored("r", rejected, text),
        margin=1.0,
    )
    defaults = {"max_turns": 6, "rng": random.Random(0)}
    return correction_from(pair, prompt, **(defaults | options))


def dialogue(correction) -> dict[str, str]:
    """Question to answer, after checking roles and images."""
    assert correction is not None
    turns = correction.turns
    assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert [turn.num_images for turn in turns] == [1] + [0] * (len(turns) - 1)
    questions = [turn.text for turn in turns[0::2]]
    assert len(set(questions)) == len(questions)
    return dict(zip(questions, [turn.text for turn in turns[1::2]], strict=True))


def test_bad_is_denied_and_missing_is_affirmed():
    correction = correct([("red circle", "ok"), ("blue square", "bad"), ("green cross", "missing")])
    assert dialogue(correction) == {
        "is there a blue square ?": "no",
        "is there a green cross ?": "yes",
    }
    assert (correction.sample_id, correction.rollout_id) == ("s", "r")


def test_ok_claims_balance_denials_when_nothing_is_missing():
    correction = correct([("red circle", "ok"), ("blue square", "bad")])
    assert dialogue(correction) == {
        "is there a blue square ?": "no",
        "is there a red circle ?": "yes",
    }


def test_the_chosen_side_supplies_affirmations_last():
    assert dialogue(correct([("blue square", "bad")], [("red ring", "ok")])) == {
        "is there a blue square ?": "no",
        "is there a red ring ?": "yes",
    }


def test_a_claim_that_is_also_ok_or_missing_is_never_denied():
    twice = [("red circle", "ok"), ("Red  circle", "bad"), ("blue square", "bad")]
    assert dialogue(correct(twice)) == {
        "is there a blue square ?": "no",
        "is there a red circle ?": "yes",
    }
    assert (
        correct([("red circle", "bad"), ("green ring", "ok")], [("red circle", "missing")]) is None
    )


def test_a_correction_is_affirmed_and_never_denied():
    wrong_color = Finding(claim="red circle", verdict="bad", correction="blue circle")
    assert dialogue(correct([wrong_color])) == {
        "is there a red circle ?": "no",
        "is there a blue circle ?": "yes",
    }
    both = dialogue(correct([wrong_color, ("blue circle", "bad")]))
    assert both["is there a blue circle ?"] == "yes"


@pytest.mark.parametrize("findings", [[], [("red circle", "ok")], [("  ", "bad")]])
def test_nothing_to_say_gives_none(findings):
    assert correct(findings, [("green ring", "ok")]) is None


def test_a_rollout_without_critique_gives_none():
    pair = PreferencePair(
        sample_id="s",
        chosen=scored("c", []),
        rejected=ScoredRollout(rollout=scored("r", []).rollout, judge="rule", score=0.0),
        margin=1.0,
    )
    assert correction_from(pair, PROMPT, max_turns=4, rng=random.Random(0)) is None


def test_denials_without_any_affirmation_give_none():
    assert correct([("blue square", "bad")]) is None


def test_missing_only_needs_the_fallback():
    findings = [("green cross", "missing"), ("red ring", "missing"), ("red circle", "ok")]
    assert correct(findings) is None
    absent = iter(["white square", "white cross"])
    seen = []

    def fallback(known, rng):
        seen.append(known)
        return next(absent)

    assert dialogue(correct(findings, fallback_absent=fallback)) == {
        "is there a green cross ?": "yes",
        "is there a red ring ?": "yes",
        "is there a white square ?": "no",
        "is there a white cross ?": "no",
    }
    assert {"green cross", "red ring", "red circle"} <= seen[0]
    assert "white square" in seen[1]


def test_a_fallback_that_offers_a_known_claim_or_nothing_is_not_believed():
    findings = [("green cross", "missing")]
    assert correct(findings, fallback_absent=lambda known, rng: "green cross") is None
    assert correct(findings, fallback_absent=lambda known, rng: None) is None


def test_a_wrong_short_answer_asks_the_question_again():
    prompt = (
        Turn(role="system", text="answer ."),
        Turn(role="user", text="how many circles ?", num_images=1),
    )
    finding = Finding(claim="two", verdict="bad", kind="count", correction="three")
    assert dialogue(correct([finding], text="Two .", prompt=prompt)) == {
        "how many circles ?": "three"
    }
    # The same finding inside a caption is no answer to the prompt, and no template suits it.
    assert correct([finding, ("red ring", "ok")]) is None


def test_a_wrong_yes_is_not_turned_into_a_claim():
    prompt = (Turn(role="user", text="is there a red ring ?", num_images=1),)
    finding = Finding(claim="yes", verdict="bad", correction="no")
    assert dialogue(correct([finding], text="yes", prompt=prompt)) == {
        "is there a red ring ?": "no"
    }
    assert correct([Finding(claim="yes", verdict="bad")], text="yes", prompt=prompt) is None


def test_statement_template_is_for_findings_beyond_existence():
    findings = [
        Finding(claim="the ring is left", verdict="bad", kind="relation"),
        Finding(claim="ring", verdict="ok"),
    ]
    assert correct(findings) is None
    found = dialogue(correct(findings, statement_template="is it true that {claim} ?"))
    assert found == {"is it true that the ring is left ?": "no", "is there a ring ?": "yes"}


def test_natural_english_templates():
    found = dialogue(
        correct(
            [("cat", "bad"), ("dog", "missing")],
            question_template="Is there a {claim} in the image?",
            yes="Yes.",
            no="No.",
        )
    )
    assert found == {
        "Is there a cat in the image?": "No.",
        "Is there a dog in the image?": "Yes.",
    }


def test_images_of_all_prompt_turns_come_with_the_first_question():
    prompt = (Turn(role="user", text="compare", num_images=2),)
    turns = correct([("a", "bad"), ("b", "ok")], prompt=prompt).turns
    assert [turn.num_images for turn in turns] == [2, 0, 0, 0]


def test_max_turns_must_leave_room_for_both_answers():
    with pytest.raises(ValueError, match="max_turns"):
        correct([("a", "bad")], max_turns=1)


claims = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ok", "bad", "missing"])), max_size=8
)


@settings(max_examples=80, deadline=None)
@given(claims, claims, st.integers(2, 7), st.booleans(), st.integers())
def test_turns_are_balanced_true_to_the_critique_and_within_the_limit(
    rejected, chosen, max_turns, with_fallback, seed
):
    def fallback(known, rng):
        return next((claim for claim in "wxyz" if claim not in known), None)

    correction = correct(
        rejected,
        chosen,
        max_turns=max_turns,
        rng=random.Random(seed),
        fallback_absent=fallback if with_fallback else None,
        question_template="{claim}",
    )
    if correction is None:
        return
    found = dialogue(correction)
    assert len(found) <= max_turns
    answers = list(found.values())
    assert answers.count("yes") == answers.count("no") > 0
    true = {claim for claim, verdict in (*rejected, *chosen) if verdict != "bad"}
    bad = {claim for claim, verdict in rejected if verdict == "bad"}
    for question, answer in found.items():
        if answer == "yes":
            assert question in true
        else:
            assert question not in true
            assert question in bad or (with_fallback and question in "wxyz")
