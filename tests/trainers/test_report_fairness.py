"""The report with any arms: a colour for each, their declared copies, and unequal conditions."""

from __future__ import annotations

import re

from tests.trainers.test_conditions import under
from tests.trainers.test_report import check, full
from trainers.comparison import Comparison
from trainers.report import render
from trainers.report_charts import NUM_COLORS, arm_colors, color, marker
from trainers.report_fairness import copies_table, described, fairness_section


def arms(number: int) -> Comparison:
    """DPO so many times, under equal conditions."""
    value = full()
    like = value.methods["dpo"]
    value.methods = {
        f"arm{i}": like.model_copy(update={"conditions": under(), "method": "dpo"})
        for i in range(number)
    }
    return value


def test_every_arm_has_a_colour_and_a_mark_of_its_own():
    names = [f"arm{i}" for i in range(NUM_COLORS + 5)]
    rules = dict(re.findall(r"(--arm-\w+): ([^;]+);", arm_colors(names)))
    assert [f"var({key}, var(--muted))" for key in rules] == [color(name) for name in names]
    assert len(set(rules.values())) == len(names)
    assert marker("arm1", names) != marker("arm2", names)
    page = check(render(arms(12), []))
    assert all(f"var(--arm{i})" in page for i in range(NUM_COLORS))


def test_names_that_are_no_words_get_different_colours():
    assert len({color(name) for name in ("a b", "a-b", "a_b", "a<b")}) == 4
    assert re.fullmatch(r"var\(--arm-\w+, var\(--muted\)\)", color('";}<script>'))


def test_equal_conditions_have_nothing_red():
    page = check(render(arms(3), []))
    assert "unfair" not in page and 'class="differs"' not in page


def test_an_unequal_arm_is_red_with_those_that_it_differs_from():
    value = arms(3)
    value.methods["arm2"].conditions = under(micro_batch={"tokens": 640, "rows": 8, "length": 80})
    value.unfair = value.unequal_conditions()
    page = check(render(value, []))
    (alert,) = re.findall(r'<div class="alert">(unfair[^<]*)</div>', page)
    assert alert.endswith("tokens 6400 (arm0, arm1) against tokens 640 (arm2)")
    cells = re.findall(r'<td class="differs">(.*?)</td>', fairness_section(value))
    assert cells == [
        "6400 = 64 rows x 100<small>not as arm2</small>",
        "6400 = 64 rows x 100<small>not as arm2</small>",
        "640 = 8 rows x 80<small>not as any other</small>",
    ]


def test_what_was_not_measured_is_a_dash_or_no_row():
    value = arms(2)
    value.methods["arm0"].conditions = None
    assert fairness_section(value).count("<tr>") == 2  # the heading and one arm
    assert described(under().model_copy(update={"rollout_copy": None}), "rollout_copy") == "-"
    path = described(under(logprob_path={"reference": None}), "logprob_path")
    assert path == "chunk 512, gradient checkpointing off"


def test_copies_are_those_that_the_method_declared():
    value = full()
    value.methods["ppo"].copies_trained = ["policy", "critic"]
    value.methods["ppo"].method = "ppo"
    row = copies_table(value).split("<tr>")[2]
    assert "<b>policy</b>, <b>critic</b>, reference, reward" in row
    assert "<td><b>4</b></td>" in row and "<td>rollout engine</td>" in row
