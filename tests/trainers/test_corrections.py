import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.critique import write_critique
from rewards.drawn_pairs import corrupt
from trainers.corrections import correction_from
from trainers.data.drawn_sft import biased_answer, biased_caption
from trainers.data.records import (
    Critique,
    Finding,
    PreferencePair,
    Rollout,
    Sample,
    ScoredRollout,
    Turn,
)
from trainers.data.scenes import (
    ALL_TYPES,
    Scene,
    Shape,
    caption,
    draw_exists,
    draw_question,
    draw_scene,
    parse_mentions,
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
    assert dialogue(correct([("blue square", "bad")], [("red cross", "ok")])) == {
        "is there a blue square ?": "no",
        "is there a red cross ?": "yes",
    }


def test_a_claim_that_is_also_ok_or_missing_is_never_denied():
    twice = [("red circle", "ok"), ("Red  circle", "bad"), ("blue square", "bad")]
    assert dialogue(correct(twice)) == {
        "is there a blue square ?": "no",
        "is there a red circle ?": "yes",
    }
    assert (
        correct([("red circle", "bad"), ("green cross", "ok")], [("red circle", "missing")]) is None
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
    assert correct(findings, [("green cross", "ok")]) is None


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
    findings = [("green cross", "missing"), ("red cross", "missing"), ("red circle", "ok")]
    assert correct(findings) is None
    absent = iter(["white square", "white cross"])
    seen = []

    def fallback(known, rng):
        seen.append(known)
        return next(absent)

    assert dialogue(correct(findings, fallback_absent=fallback)) == {
        "is there a green cross ?": "yes",
        "is there a red cross ?": "yes",
        "is there a white square ?": "no",
        "is there a white cross ?": "no",
    }
    assert {"green cross", "red cross", "red circle"} <= seen[0]
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
    assert correct([finding, ("red cross", "ok")]) is None


def test_a_wrong_yes_is_not_turned_into_a_claim():
    prompt = (Turn(role="user", text="is there a red cross ?", num_images=1),)
    finding = Finding(claim="yes", verdict="bad", correction="no")
    assert dialogue(correct([finding], text="yes", prompt=prompt)) == {
        "is there a red cross ?": "no"
    }
    assert correct([Finding(claim="yes", verdict="bad")], text="yes", prompt=prompt) is None


def test_a_correction_by_the_chosen_sides_critique_is_never_denied():
    wrong_color = Finding(claim="red circle", verdict="bad", correction="blue circle")
    rejected = [("blue circle", "bad"), ("green cross", "bad"), ("white cross", "ok")]
    assert dialogue(correct(rejected, [wrong_color])) == {
        "is there a green cross ?": "no",
        "is there a white cross ?": "yes",
    }


@pytest.mark.parametrize("kind", ["count", "relation"])
def test_a_claim_that_is_bad_for_its_number_or_place_is_never_denied(kind):
    findings = [Finding(claim="red circle", verdict="bad", kind=kind), ("green cross", "missing")]
    assert correct(findings, [("white cross", "ok")]) is None


SCENE = Scene((Shape("red", "circle", "top-left"), Shape("green", "cross", "bottom-right")))


def judged(truth, kind, prompt, rejected, chosen, **options):
    """The dialogue from perfect critiques of two responses, or None; any other type is absent."""

    def absent(known, rng):
        return next((" ".join(t) for t in ALL_TYPES if " ".join(t) not in known), None)

    critiques = [write_critique(truth, kind, prompt, text) for text in (rejected, chosen)]
    correction = correct(
        *(critique.findings for critique in critiques),
        text=rejected,
        prompt=(Turn(role="user", text=prompt, num_images=1),),
        **({"fallback_absent": absent} | options),
    )
    return None if correction is None else dialogue(correction)


def described(rejected: str, **options):
    return judged(
        SCENE.truth(), "describe", "describe the image .", rejected, caption(SCENE), **options
    )


def test_a_claim_at_the_wrong_place_is_affirmed_not_denied():
    # the cross is said of an empty place and of the circle's; both objects are in the image
    assert described("top-left red circle . top-right green cross .") == {
        "is there a green cross ?": "yes",
        "is there a red square ?": "no",
    }
    assert described("top-left green cross . bottom-right red circle .") == {
        "is there a green cross ?": "yes",
        "is there a red circle ?": "yes",
        "is there a red square ?": "no",
        "is there a red triangle ?": "no",
    }
    assert described("top-left green cross .", fallback_absent=None) is None


def test_a_claim_said_again_or_without_a_place_is_not_denied():
    again = "top-left red circle . top-left red circle . bottom-right blue square ."
    assert described(again) == {
        "is there a blue square ?": "no",
        "is there a green cross ?": "yes",
    }
    assert described("a red circle . bottom-right green cross .") == {
        "is there a red circle ?": "yes",
        "is there a red square ?": "no",
    }
    # nothing is missing and nothing false was said of what there is: there is nothing to correct
    assert described(f"{caption(SCENE)} top-left red circle .") is None


def test_a_wrong_yes_is_denied_and_balanced_from_the_listing():
    question = "is there a blue square ?"
    found = judged(SCENE.truth("no"), "exists", question, "yes", "no", fallback_absent=None)
    assert found is not None and found.pop(question) == "no"
    assert found in ({"is there a red circle ?": "yes"}, {"is there a green cross ?": "yes"})


def test_a_wrong_no_is_affirmed_and_balanced_by_something_absent():
    question = "is there a red circle ?"
    found = judged(SCENE.truth("yes"), "exists", question, "no", "yes")
    assert found == {question: "yes", "is there a red square ?": "no"}


def test_a_yes_or_no_question_answered_otherwise():
    question = "is there a red circle ?"
    assert judged(SCENE.truth("yes"), "exists", question, "red", "yes") == {question: "yes"}
    # the critique calls it "nothing", which is no claim that a question could be about
    assert judged(SCENE.truth("yes"), "exists", question, "yes yes", "yes") is None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["describe", "question", "exists"]))
def test_with_perfect_critiques_every_turn_is_true(seed, kind):
    rng = random.Random(seed)
    scene = draw_scene(rng)
    prompt, answer = "describe the image .", None
    if kind != "describe":
        prompt, answer = (draw_question if kind == "question" else draw_exists)(scene, rng)
    truth = scene.truth(answer)
    sample = Sample(id="s", prompt=(Turn(role="user", text=prompt),), kind=kind, truth=truth)
    rejected, chosen = corrupt(sample, rng), corrupt(sample, rng)
    if rng.random() < 0.5:
        biased = biased_caption(scene, rng) if answer is None else None
        rejected = biased or biased_answer(scene, prompt, answer, rng)
    found = judged(truth, kind, prompt, rejected, chosen, rng=rng) or {}
    for question, said in found.items():
        if question == prompt:
            assert said == answer
        else:
            (asked,) = parse_mentions(question)
            assert said == ("yes" if asked.type in scene.types else "no")


def test_statement_template_is_for_findings_beyond_existence():
    findings = [
        Finding(claim="the cross is left", verdict="bad", kind="relation"),
        Finding(claim="cross", verdict="ok"),
    ]
    assert correct(findings) is None
    found = dialogue(correct(findings, statement_template="is it true that {claim} ?"))
    assert found == {"is it true that the cross is left ?": "no", "is there a cross ?": "yes"}


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
