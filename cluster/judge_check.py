"""The judge's self-check: before the first round it has to know good answers from bad ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from cluster.arm import Arm
from cluster.driver import ask_judge
from cluster.failures import RunStoppedError
from cluster.session import Session
from rewards.sanity import KnownPair, count_right, drawn_pairs, pair_items, recorded_pairs
from trainers.data.images import ImageStore
from trainers.data.records import Sample
from trainers.data.scenes import scene_samples

SEED = 30_000
"""Of the drawn pairs: scenes that neither the judge's training nor a round draws."""


SEARCHED = 2000
"""Rows of a data file that are looked at for pairs: reading one decodes its images."""


def check(
    session: Session, arm: Arm, store: ImageStore, samples: Iterable[Sample] | None
) -> dict[str, float]:
    """Let the loaded judge order known pairs; outside the method's budget of judge calls.

    Args:
        samples: of a data file, whose chosen and rejected answers are the pairs; None on the drawn
            world, where the truth and injected errors are.

    Returns the accuracy and the number of pairs, for `compare.json`; empty without a check.

    Raises:
        RunStoppedError: the judge orders fewer than `judge_check.min_accuracy` of them rightly.
    """
    settings, console = arm.config.judge_check, session.console
    if settings.min_accuracy == 0:
        console.line("judge self-check: off (judge_check.min_accuracy=0)")
        return {}
    pairs = known_pairs(samples, settings.num_pairs, store)
    if not pairs:
        console.line("judge self-check: not possible, no row has both chosen and rejected")
        return {}
    with console.stage("check the judge on known pairs"):
        judged = ask_judge(session, arm, pair_items(pairs))
        name = session.ask("judge", "name", limit="answer")
    result = count_right([judgement.score for judgement in judged])
    found = (
        f"judge {name} orders {result.accuracy:.0%} of {result.num_pairs} known pairs rightly "
        f"({result.ties} ties, {result.failures} not judged)"
    )
    if result.accuracy < settings.min_accuracy:
        reason = next((j.failure for j in judged if j.failure is not None), None)
        raise RunStoppedError(
            f"{found}, less than judge_check.min_accuracy={settings.min_accuracy:g}; training "
            "would follow a judge that does not know good from bad. Take another one; for a "
            "control set judge_check.min_accuracy=0"
            + (f". The first failure: {reason}" if reason else "")
        )
    console.line(found)
    return {
        "self_check_accuracy": result.accuracy,
        "self_check_pairs": float(result.num_pairs),
    }


def known_pairs(
    samples: Iterable[Sample] | None, number: int, store: ImageStore
) -> list[KnownPair]:
    """Pairs of the data file, or of freshly drawn scenes."""
    if samples is not None:
        return recorded_pairs(islice(samples, SEARCHED), number)
    return drawn_pairs(scene_samples(SEED, number, store.put_image), SEED)
