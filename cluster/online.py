"""A round's rollouts from the engine, judged; with overlap each slice as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.accounts import settle
from cluster.ahead import begin_round, slices
from cluster.arm import Arm
from cluster.driver import PromptSource, ask_judge, count, require_usable, write_round
from cluster.residency import awake
from cluster.rollouts import chained
from cluster.served import Begun
from cluster.session import Session
from cluster.sync import require_version
from rewards.base import JudgeItem, scored
from trainers.data.records import Rollout, Sample, ScoredRollout


class OnlineRollouts:
    """Rollouts from the engine, judged as they are needed, written to disk before training."""

    def __init__(self, session: Session, arm: Arm, prompts: PromptSource):
        self.session, self.arm, self.prompts = session, arm, prompts

    def collect(self, number: int) -> tuple[dict[str, Sample], list[ScoredRollout]]:
        """Answer, judge and record the round's prompts."""
        config, arm = self.arm.config, self.arm
        early, arm.ahead = arm.ahead, None
        assert early is None or early.number == number, "answers to another round's prompts"
        samples = early.samples if early else self.prompts.round(number)
        by_id = {sample.id: sample for sample in samples}
        sliced = config.overlap.judge_slices > 1
        judging: list[Begun] = []
        with arm.phase("generate"), awake(self.session, arm, "rollout"):
            asked = early or begin_round(self.session, arm, samples, number)
            for made, _ in slices(self.session, asked):
                require_version(arm, made, behind=1 if early else 0)
                if sliced and made:
                    items = judge_items(by_id, made)
                    judging.append(self.session.served("judge").begin("judge", items))
        if config.overlap.off_policy_steps and number < config.rounds:
            following = self.prompts.round(number + 1)
            arm.ahead = begin_round(self.session, arm, following, number + 1)
        rollouts = [rollout for made, _ in asked.made for rollout in made]
        dropped = [item for _, bad in asked.made for item in bad]
        for item in dropped:
            count(arm.result.dropped, f"prompt: {item.reason}")
        with arm.phase("judge"):
            judged = self._judge(by_id, rollouts, judging if sliced else None)
        arm.result.rollouts += len(rollouts)
        arm.result.judge_calls += len(judged)
        each = config.rollout.num_rollouts_per_prompt
        total = len(samples) * each
        settle(arm.result.account, total, judged, len(dropped) * each)
        with arm.phase("record"):
            write_round(arm.folder, number, samples, judged)
        failures = [item.failure for item in judged if item.failure is not None]
        for reason in failures:
            count(arm.result.dropped, reason)
        bad = len(failures) + len(dropped) * each
        require_usable(arm, number, bad, total, [*failures, *(item.reason for item in dropped)])
        return by_id, judged

    def _judge(
        self,
        samples: Mapping[str, Sample],
        rollouts: Sequence[Rollout],
        begun: Sequence[Begun] | None = None,
    ) -> list[ScoredRollout]:
        """The rollouts judged: now, or slice by slice as it was `begun`."""
        items = judge_items(samples, rollouts)
        if begun is None:
            judgements = ask_judge(self.session, self.arm, items)
        else:
            judge = self.session.served("judge")
            judgements = chained([judge.finish(each, limit="judge") for each in begun])
        self.arm.result.judge = self.session.ask("judge", "name", limit="answer")
        return scored(items, judgements, self.arm.result.judge)


def judge_items(samples: Mapping[str, Sample], rollouts: Sequence[Rollout]) -> list[JudgeItem]:
    """What the judge reads of each rollout."""
    return [JudgeItem(sample=samples[each.sample_id], rollout=each) for each in rollouts]
