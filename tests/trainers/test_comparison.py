from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainers.comparison import (
    Comparison,
    CurvePoint,
    Evaluated,
    Memory,
    MethodResult,
    PhaseSpan,
    load,
    save,
)
from trainers.conditions import (
    Conditions,
    Difference,
    LogprobPath,
    MicroBatch,
    Precision,
    RolloutCopy,
    Shards,
)
from trainers.data.errors import UserError
from trainers.gallery import Gallery, GalleryItem, gallery_item, load_gallery
from trainers.verdicts import all_warnings, check_budgets, verdicts


def comparison(**arms: MethodResult) -> Comparison:
    base = {"chair_i": 0.24, "chair_i_se": 0.012, "recall": 0.95, "pope_yes_ratio": 0.7}
    return Comparison(base=Evaluated(metrics=base), methods=arms)


def arm(chair_i: float | None = 0.1, recall: float | None = 0.95, **more: object) -> MethodResult:
    metrics = {"chair_i": chair_i, "recall": recall, "mentions_per_object": 1.0}
    extra = more.pop("metrics", {})
    assert isinstance(extra, dict)
    return MethodResult.model_validate({"metrics": {**metrics, **extra}, **more})


def holds(value: Comparison, words: str) -> bool:
    (found,) = [each for each in verdicts(value) if words in each.claim]
    return found.holds


def test_round_trip_writes_null_for_nan_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "compare.json"
    value = comparison(ppo=arm(chair_i=float("nan"), curve=[{"round": 1, "kl": float("inf")}]))
    save(value, path)
    raw = json.loads(path.read_text())
    assert raw["methods"]["ppo"]["metrics"]["chair_i"] is None
    assert raw["methods"]["ppo"]["curve"][0]["kl"] is None
    assert load(path) == value
    assert [each.name for each in path.parent.iterdir()] == ["compare.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "compare.json"
    save(comparison(), path)
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save(comparison(ppo=arm()), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "invalid JSON"),
        ('{"surprise": 1}', "surprise"),
        ('{"methods": {"ppo": {"rollouts": "many"}}}', "methods.ppo.rollouts"),
    ],
)
def test_a_bad_file_is_one_line_with_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json"):
        load(tmp_path / "nowhere.json")


def test_unknown_keys_are_refused_when_written_too() -> None:
    with pytest.raises(ValidationError):
        CurvePoint.model_validate({"round": 1, "chair": 0.1})


def test_gallery_round_trip(tmp_path: Path) -> None:
    item = gallery_item(b"\x89PNG", {"objects": []}, {"base": "a red circle"})
    save(Gallery(items=[item]), tmp_path / "gallery.json")
    assert load_gallery(tmp_path / "gallery.json").items == [item]


def test_every_key_of_the_schema_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compare_json.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    for model in (
        Comparison,
        Evaluated,
        MethodResult,
        Conditions,
        Precision,
        MicroBatch,
        Shards,
        LogprobPath,
        RolloutCopy,
        Difference,
        Memory,
        CurvePoint,
        PhaseSpan,
        Gallery,
        GalleryItem,
    ):
        assert set(model.model_fields) <= documented, model.__name__


def test_arms_come_in_the_order_in_which_they_were_run(tmp_path: Path) -> None:
    value = comparison(zeta=arm(), sft=arm(), ppo=arm())
    assert [name for name, _ in value.arms()] == ["zeta", "sft", "ppo"]
    save(value, tmp_path / "compare.json")
    assert [name for name, _ in load(tmp_path / "compare.json").arms()] == ["zeta", "sft", "ppo"]


def test_equal_budgets_are_silent_and_random_needs_no_judge() -> None:
    equal = {name: arm(rollouts=96, judge_calls=96) for name in ("ppo", "dpo", "nsft", "sft")}
    floor = arm(rollouts=96, judge="random")
    assert check_budgets(comparison(**equal, floor=floor)) == []
    assert check_budgets(comparison(**equal, random=arm(rollouts=96, judge="critique")))


def test_unequal_budgets_are_named() -> None:
    value = comparison(ppo=arm(rollouts=96, judge_calls=96), dpo=arm(rollouts=48, judge_calls=96))
    (line,) = check_budgets(value)
    assert "rollouts differ (ppo 96, dpo 48)" in line
    value.warnings.append(line)
    assert all_warnings(value) == [line]


def test_a_failed_arm_is_no_budget_problem() -> None:
    value = comparison(ppo=arm(rollouts=96), dpo=arm(rollouts=3, failure="parity check failed"))
    assert check_budgets(value) == []


def test_the_chair_verdict_holds_at_exactly_half() -> None:
    assert holds(comparison(ppo=arm(0.12)), "PPO lowers CHAIR_i")
    assert not holds(comparison(ppo=arm(0.121)), "PPO lowers CHAIR_i")


def test_the_recall_verdict_holds_at_exactly_three_points() -> None:
    assert holds(comparison(dpo=arm(recall=0.92)), "DPO loses at most 3 points")
    assert not holds(comparison(dpo=arm(recall=0.919)), "DPO loses at most 3 points")


def test_what_was_not_measured_does_not_hold() -> None:
    value = comparison(nsft=arm(chair_i=None, recall=None))
    value.methods["nsft"].metrics.pop("mentions_per_object")
    assert [each.holds for each in verdicts(value)] == [False] * 4
    assert all("not measured" in each.numbers for each in verdicts(value))


def test_yes_ratio_and_writing_less() -> None:
    good = arm(metrics={"pope_yes_ratio": 0.55})
    short = arm(metrics={"pope_yes_ratio": 0.65, "mentions_per_object": 0.8})
    assert holds(comparison(nsft=good), "POPE")
    assert holds(comparison(nsft=good), "writing less")
    assert not holds(comparison(nsft=short), "POPE")
    assert not holds(comparison(nsft=short), "writing less")


def test_random_must_stay_within_its_error() -> None:
    # Two standard errors: 2 * hypot(0.012, 0.009) = 0.03; 10 % of the base: 0.024.
    assert holds(comparison(random=arm(0.21, metrics={"chair_i_se": 0.009})), "Random")
    assert not holds(comparison(random=arm(0.2, metrics={"chair_i_se": 0.009})), "Random")
    assert holds(comparison(random=arm(0.3)), "Random")


def test_explained_variance_is_of_the_last_third() -> None:
    # Six rounds: the last third is the last two, mean 0.3.
    curve = [{"round": i, "explained_variance": v} for i, v in enumerate([-1, 0, 0, 0, 0.1, 0.5])]
    assert holds(comparison(ppo=arm(curve=curve)), "critic")
    assert not holds(comparison(ppo=arm(curve=curve[:5])), "critic")
    assert not holds(comparison(ppo=arm()), "critic")


def test_no_arms_no_verdicts() -> None:
    assert verdicts(Comparison()) == []
