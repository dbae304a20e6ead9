from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from trainers.comparison import Comparison, Evaluated, MethodResult
from trainers.data import scenes
from trainers.gallery import Gallery, GalleryItem, gallery_item
from trainers.report import render, write_report
from trainers.report_charts import human_bytes, merge_spans, ticks

ROUNDS = {"ppo": 8, "dpo": 8, "nsft": 8, "sft": 8, "random": 8}
COPIES = {
    "ppo": ["policy", "critic", "reference", "reward"],
    "dpo": ["policy", "reference"],
    "nsft": ["policy"],
    "sft": ["policy"],
    "random": ["policy"],
}
CHAIR = {"ppo": 0.048, "dpo": 0.061, "nsft": 0.072, "sft": 0.131, "random": 0.262}
RECALL = {"ppo": 0.951, "dpo": 0.937, "nsft": 0.949, "sft": 0.931, "random": 0.944}
YES = {"ppo": 0.63, "dpo": 0.66, "nsft": 0.52, "sft": 0.65, "random": 0.67}


def metrics(chair_i: float, recall: float, yes: float, length: float) -> dict[str, Any]:
    return {
        "chair_i": chair_i, "chair_i_se": 0.011, "chair_s": min(1, 2.2 * chair_i),
        "chair_s_se": 0.02, "recall": recall, "recall_se": 0.006,
        "mentions_per_object": recall / (1 - chair_i), "pope_accuracy": 0.97 - abs(yes - 0.5),
        "pope_accuracy_se": 0.008, "pope_f1": 0.96 - abs(yes - 0.5), "pope_f1_se": 0.009,
        "pope_yes_ratio": yes, "pope_yes_ratio_se": 0.009,
        "response_length": length, "response_length_se": 0.3, "position_accuracy": 0.981,
        "scenes": 500.0,
    }  # fmt: skip


def arm(name: str) -> MethodResult:
    rng = random.Random(name)
    curve, timeline, clock = [], [], 0.0
    seconds: dict[str, float] = {}
    for index in range(1, ROUNDS[name] + 1):
        share = 1 - 0.6**index
        curve.append({
            "round": index, "score": -0.4 + 1.1 * share + rng.gauss(0, 0.05), "score_std": 0.6,
            "kl": 0.0 if name in ("sft",) else 0.9 * share + rng.gauss(0, 0.03),
            "chair_i": 0.245 + (CHAIR[name] - 0.245) * share + rng.gauss(0, 0.006),
            "recall": 0.946 + (RECALL[name] - 0.946) * share + rng.gauss(0, 0.004),
            "explained_variance": 0.5 * share - 0.1 if name == "ppo" else None,
        })  # fmt: skip
        for phase, typical in (("rollout", 2.1), ("judge", 3.2), ("train", 4.5), ("sync", 0.3),
                               ("evaluate", 1.4)):  # fmt: skip
            taken = (
                typical * (1.5 if name == "ppo" and phase == "train" else 1) * rng.uniform(0.8, 1.2)
            )
            timeline.append({"phase": phase, "start": clock, "end": clock + taken})
            seconds[phase] = seconds.get(phase, 0.0) + taken
            clock += taken + 0.1
    trained = {"weights": 4_200_000, "gradients": 4_200_000, "optimizer": 8_400_000}
    held = {
        copy: trained if copy in ("policy", "critic") else {"weights": 4_200_000}
        for copy in COPIES[name]
    }
    held |= {"rollout_engine": {"weights": 4_200_000, "kv_cache": 6_000_000}}
    loop = [*COPIES[name], "rollout_engine"]
    if name != "ppo":
        held["judge_engine"] = {"weights": 4_300_000}
        loop.append("judge_engine")
    return MethodResult.model_validate({
        "copies_train": COPIES[name], "copies_loop": loop, "bytes_by_copy": held,
        "seconds_by_phase": seconds, "rollouts": 8192, "judge_calls": 8192,
        "dropped": {"no answer": 3} if name == "dpo" else {},
        "metrics": metrics(CHAIR[name], RECALL[name], YES[name], 24.1), "curve": curve,
        "timeline": timeline,
    })  # fmt: skip


def full() -> Comparison:
    return Comparison(
        created="2025-03-01T12:00:00",
        seed=0,
        config={"ppo": {"kl_coef": 0.05, "clip_range": 0.2}, "num_rollouts_per_prompt": 4},
        environment={"device": "CPU, 2 cores", "python": "3.11.9", "torch": "2.13.0"},
        base=Evaluated(metrics=metrics(0.245, 0.946, 0.68, 29.8)),
        honest=Evaluated(metrics=metrics(0.021, 0.972, 0.5, 24.6)),
        methods={name: arm(name) for name in COPIES},
        judge={
            "pair_accuracy_generated": 0.924,
            "pair_accuracy_no_critique": 0.833,
            "pair_accuracy_ground_truth_critique": 0.998,
            "pairs": 600.0,
        },
        seconds_total=521.0,
    )


def gallery(count: int = 4) -> list[GalleryItem]:
    rng = random.Random(1)
    items = []
    for _ in range(count):
        drawn = iter(lambda: scenes.draw_scene(rng), None)
        scene = next(scene for scene in drawn if len(scene.objects) >= 2)
        buffer = BytesIO()
        scenes.render(scene, rng).save(buffer, "PNG")
        good = scenes.caption(scene)
        answers = dict.fromkeys(("ppo", "nsft"), good)
        answers["base"] = good + " top-left purple square ."
        answers["dpo"] = ". ".join(good.split(". ")[1:])
        answers["random"] = ""
        items.append(
            gallery_item(buffer.getvalue(), scene.truth(), answers, "describe the image .")
        )
    return items


class Checker(HTMLParser):
    """Every tag is closed in order, and no attribute loads anything from outside."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            assert name != "href"
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
            assert not re.search(r"\b(nan|inf|None)\b", value or ""), (tag, name, value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert not re.search(r"\bnan\b", data), data


def check(page: str) -> str:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    return page


def test_the_full_report_is_one_closed_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(full(), Gallery(items=gallery()), path)
    page = check(path.read_text(encoding="utf-8"))
    for words in ("Four copies, two, or one", "24.5 %", "92.4 %", "8,192", "no answer 3", "kl_coef",
                  "image-rendering: pixelated", "16.8 MB",
                  "rollout engine"):  # fmt: skip
        assert words in page
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_hallucinated_words_are_marked_and_missing_objects_listed() -> None:
    truth = {"objects": [["red", "circle", "top-left"], ["blue", "square", "bottom-right"]]}
    answers = {"base": "top-left red circle . bottom-right green cross ."}
    page = check(render(full(), [gallery_item(b"", truth, answers)]))
    assert re.search(r"<mark>bottom-right green cross</mark>", page)
    assert "missing: blue square" in page
    assert "top-left red circle" in page


def test_a_wrong_place_is_underlined_not_struck_through() -> None:
    truth = {"objects": [["red", "circle", "top-left"]]}
    item = gallery_item(b"", truth, {"base": "bottom-right red circle ."})
    page = check(render(full(), [item]))
    assert '<mark class="place" title="is at top-left">bottom-right red circle</mark>' in page
    assert "<mark>" not in page


def test_a_question_shows_the_expected_answer() -> None:
    item = gallery_item(b"", {"objects": [], "answer": "two"}, {"base": "three"}, "how many ?")
    page = check(render(full(), [item]))
    assert "expected: two" in page
    assert "<mark>" not in page


def test_images_that_are_not_of_the_drawn_world_are_shown_unmarked() -> None:
    page = check(render(full(), [gallery_item(b"", {}, {"base": "a dog on a sofa"})]))
    assert "a dog on a sofa" in page
    assert "<mark>" not in page


def test_everything_from_outside_is_escaped() -> None:
    nasty = "<script>alert(1)</script>"
    value = full()
    value.warnings.append(nasty)
    value.config = {nasty: nasty}
    value.methods["dpo"].failure = nasty
    value.methods["dpo"].dropped = {nasty: 1}
    value.methods["dpo"].bytes_by_copy[nasty] = {nasty: 5}
    value.methods[nasty] = value.methods["dpo"]
    item = gallery_item(b"", {"objects": [[nasty, "a", "b"]]}, {nasty: nasty}, nasty)
    assert nasty not in check(render(value, [item]))


def test_unequal_budgets_and_failures_are_red() -> None:
    value = full()
    value.methods["ppo"].rollouts = 5
    value.methods["sft"].failure = "parity check failed"
    page = check(render(value, []))
    assert page.count('class="alert"') == 2
    assert "unequal budgets: rollouts differ" in page


@pytest.mark.parametrize("name", list(COPIES))
def test_a_single_method_without_base_or_gallery(name: str) -> None:
    page = check(render(Comparison(methods={name: arm(name)}), []))
    assert "Four copies" not in page


def test_a_method_that_measured_nothing() -> None:
    blank = {"curve": [{"round": 1}], "metrics": {"chair_i": float("nan")}}
    empty = MethodResult.model_validate(blank)
    check(render(Comparison(methods={"ppo": empty, "odd": MethodResult()}), []))


def test_no_method_at_all() -> None:
    assert "Nothing has been evaluated yet" in check(render(Comparison(), []))


def test_a_missing_value_breaks_the_curve_instead_of_being_drawn() -> None:
    value = Comparison(methods={"ppo": MethodResult.model_validate({
        "curve": [{"round": i, "kl": v} for i, v in enumerate([0.1, 0.2, None, 0.3, 0.4])]
    })})  # fmt: skip
    (path,) = re.findall(r'class="line"[^>]* d="([^"]*)"', check(render(value, [])))
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_constant_and_single_round_curves() -> None:
    for values in ([0.0], [0.0, 0.0], [-2.0, -2.0]):
        curve = [{"round": i + 1, "score": v, "kl": v} for i, v in enumerate(values)]
        method = MethodResult.model_validate({"curve": curve})
        check(render(Comparison(methods={"dpo": method}), []))


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks(0.0, 0.93) == [0, 0.5, 1.0]
    assert ticks(0.0, 8.0) == [0, 2, 4, 6, 8]
    assert ticks(-0.4, 0.7)[0] <= -0.4
    assert ticks(-0.4, 0.7)[-1] >= 0.7
    assert len(ticks(3.0, 3.0)) >= 2


def test_merge_spans_joins_only_neighbours_of_one_phase() -> None:
    timeline = [
        {"phase": "train", "start": 1.0, "end": 2.0},
        {"phase": "train", "start": 2.01, "end": 3.0},
        {"phase": "sync", "start": 3.0, "end": 3.5},
        {"phase": "train", "start": 9.0, "end": 10.0},
    ]
    spans = MethodResult.model_validate({"timeline": timeline}).timeline
    merged = [(s.phase, s.start, s.end) for s in merge_spans(spans)]
    assert merged == [("train", 1.0, 3.0), ("sync", 3.0, 3.5), ("train", 9.0, 10.0)]


def test_human_bytes() -> None:
    assert [human_bytes(n) for n in (0, 999, 4_200_000, 1.1e9, 123_456_789)] == [
        "0 B", "999 B", "4.2 MB", "1.1 GB", "123 MB",
    ]  # fmt: skip
