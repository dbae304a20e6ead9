"""Prompts and recorded rollouts: equal for every method, complete, honest about what is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.driver import write_round
from cluster.failures import RunStoppedError
from cluster.sources import DrawnPrompts, FilePrompts, RecordedRollouts
from rewards.base import Judgement
from trainers.data.errors import UserError
from trainers.data.records import Sample, Turn
from trainers.data.tally import Dropped


class Listed(list[Sample]):
    """Samples in memory, taken as those of a file are."""

    def take(self, which: Sequence[int]) -> list[Sample | Dropped]:
        return [self[i] for i in which]


def prompts(number: int) -> Listed:
    turn = (Turn(role="user", text="what ?"),)
    return Listed(Sample(id=f"s{i}", prompt=turn) for i in range(number))


@given(size=st.integers(1, 12), per_round=st.integers(1, 15), seed=st.integers(0, 3))
def test_a_pass_covers_all_samples_before_any_repeats(size, per_round, seed):
    source = FilePrompts(prompts(size), per_round, seed)
    drawn: Counter[str] = Counter()
    for number in range(1, 8):
        ids = [sample.id for sample in source.round(number)]
        assert len(ids) == len(set(ids)) == min(per_round, size)
        drawn.update(ids)
        if size % per_round == 0 or per_round >= size:
            # rounds end where passes end: counts never differ by more than one
            counts = [drawn[f"s{i}"] for i in range(size)]
            assert max(counts) - min(counts) <= 1


@given(size=st.integers(1, 12), per_round=st.integers(1, 15))
def test_the_first_pass_repeats_nothing(size, per_round):
    source = FilePrompts(prompts(size), per_round, 0)
    rounds = [[s.id for s in source.round(n)] for n in range(1, size // per_round + 1)]
    ids = [id for one in rounds for id in one]
    assert len(ids) == len(set(ids))


def test_rounds_do_not_depend_on_which_came_before():
    a, b = (FilePrompts(prompts(10), 4, 1) for _ in range(2))
    a.round(1)
    a.round(2)
    assert a.round(3) == b.round(3)
    assert a.round(1) != FilePrompts(prompts(10), 4, 2).round(1)


class Spoiled(Listed):
    """Samples of which every fifth turns out to have no readable image."""

    def take(self, which: Sequence[int]) -> list[Sample | Dropped]:
        bad = Dropped(row=5, reason="cat.png: damaged")
        return [bad if i % 5 == 0 else self[i] for i in which]


def test_samples_that_fail_when_taken_are_counted_and_stop_the_run_when_many():
    samples = Spoiled(prompts(10))
    dropped = {"data: cat.png: damaged": 1}
    source = FilePrompts(samples, 10, 0, dropped=dropped, max_dropped=0.2)
    assert len(source.round(1)) == 8
    assert dropped == {"data: cat.png: damaged": 3}
    with pytest.raises(RunStoppedError, match=r"round 1: 2 of 10 prompts cannot be used, more"):
        FilePrompts(samples, 10, 0, max_dropped=0.1).round(1)


@given(size=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_pass_is_a_permutation_of_the_samples_in_memory(size, seed):
    source = FilePrompts(prompts(size), size, seed)
    ids = [f"s{i}" for i in range(size)]
    random.Random(f"{seed}/1").shuffle(ids)
    assert [sample.id for sample in source.round(1)] == ids


def test_drawn_prompts_are_equal_for_equal_seeds(store):
    first, again = (DrawnPrompts(store, 4, 0).round(1) for _ in range(2))
    assert first == again
    assert first != DrawnPrompts(store, 4, 0).round(2)
    assert first != DrawnPrompts(store, 4, 1).round(1)


@pytest.fixture
def run(tmp_path, samples, make_scored):
    judged = [make_scored(f"{s.id}/0", s.id, float(i)) for i, s in enumerate(samples[:4])]
    write_round(tmp_path, 1, samples[:4], judged)
    return tmp_path, judged


def test_recorded_rounds_come_back(run, samples):
    folder, judged = run
    warnings: list[str] = []
    found, again = RecordedRollouts(folder, warnings.append).collect(1)
    assert found == {sample.id: sample for sample in samples[:4]}
    assert again == judged and not warnings


def test_a_round_written_twice_is_not_doubled(run, samples):
    folder, judged = run
    write_round(folder, 1, samples[:4], judged)
    assert RecordedRollouts(folder, lambda text: None).collect(1)[1] == judged


def test_a_cut_off_file_loses_its_last_record_and_says_so(run):
    folder, judged = run
    (file,) = (folder / "rounds").glob("*.msgpack")
    file.write_bytes(file.read_bytes()[:-3])
    warnings: list[str] = []
    _, again = RecordedRollouts(folder, warnings.append).collect(1)
    assert again == judged[:-1]
    assert len(warnings) == 1 and str(file) in warnings[0]


def test_another_judge_scores_the_recorded_responses_anew(run):
    folder, judged = run

    def judge(items):
        return [Judgement(score=-1.0)] * (len(items) - 1) + [Judgement(failure="no")]

    _, again = RecordedRollouts(folder, print, ("mine", judge)).collect(1)
    assert [item.rollout for item in again] == [item.rollout for item in judged]
    assert [item.score for item in again] == [-1.0, -1.0, -1.0, None]
    assert {item.judge for item in again} == {"mine"}


def test_a_folder_without_rounds_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no rounds/round_\*\.msgpack"):
        RecordedRollouts(tmp_path, print)
