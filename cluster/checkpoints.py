"""The checkpoints of a run: what is written after a round, and how a run goes on from it.

checkpoints/round_000003/
policy/       the policy as a plain Hugging Face folder
engine/       weights and optimiser states of every trained copy (`actors.state_files`)
reference/    where it is a moving average of the policy; else it is read or copied again
ahead.*       answers to the next round's prompts, where they are asked for a round early
state.json    generators, counters, the method's own state, the curve (`cluster.run_state`)
manifest.json
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import ray

from actors.export import WEIGHTS, write_tensors
from actors.weight_sync import make_buckets, open_bucket
from cluster.ahead import Ahead, load_ahead, save_ahead
from cluster.arm import Arm
from cluster.best import HIGHER_IS_BETTER, BestRound, save_policy
from cluster.failures import RunStoppedError
from cluster.fingerprint import fingerprint
from cluster.ledger import FILE as LEDGER
from cluster.recipe import Call
from cluster.residency import at_work
from cluster.run_state import STATE, BestState, RunState, read_state
from cluster.session import Session
from trainers import checkpoint
from trainers.comparison import MethodResult
from trainers.data.errors import UserError
from trainers.random_state import random_state, set_random_state, set_state_of, state_of

GROWING = ("metrics.jsonl", str(LEDGER))
"""Files that every round adds to."""
BY_ROUND = ("rounds", "corrections")
"""Folders with a file a round."""


class Checkpoints:
    """Writes and reads one arm's checkpoints.

    Args:
        session: whose processes hold the copies.
        arm: what is saved.
        rng: the loop's generator.
        best: the best round so far, if one is kept.
        online: whether there is a rollout engine.
    """

    def __init__(
        self,
        session: Session,
        arm: Arm,
        rng: random.Random,
        best: BestRound | None,
        *,
        online: bool,
    ):
        self.session, self.arm, self.rng, self.best = session, arm, rng, best
        self.online = online
        self.root = arm.folder / checkpoint.CHECKPOINTS
        self.settings = arm.config.checkpoint
        self._unwritten: RunState | None = None
        self._ahead: Ahead | None = None

    # Going on ----------------------------------------------------------------------------------

    def restore(self) -> int:
        """Go on from the latest checkpoint: set the loaded copies and everything else to what they
        were, and cut off what was written later. Returns its round; 0 without one.

        Raises:
            UserError: the checkpoint lacks something, or the run is not made of what it was.
        """
        numbers = checkpoint.rounds(self.root)
        self.arm.ahead = None
        if not numbers:
            self._cut_files(0, dict.fromkeys(GROWING, 0))
            shutil.rmtree(self.arm.folder / "best", ignore_errors=True)
            return 0
        path = checkpoint.folder(self.root, numbers[-1])
        state = read_state(path)
        self._require_fits(path, state)
        for role in self.arm.method.trained:
            with at_work(self.session, self.arm, role):
                self.session.trainer(role).ask("load_state", str(path / "engine"), limit="load")
        if (average := path / "reference" / WEIGHTS).is_file():
            self._set_reference(average)
        try:
            self.arm.method.load_state(state.method_state)
        except KeyError as error:
            raise UserError(
                f"{path / STATE}: method_state: lacks {error.args[0]}, which {state.method} keeps"
            ) from None
        set_state_of(self.rng, state.rng)
        set_random_state(state.random)
        set_result(self.arm.result, state.result)
        self.arm.clock.go_on(state.spans)
        if self.best is not None and state.best is not None:
            self.best.go_on(state.best.round, state.best.value)
        self.arm.ahead = load_ahead(path)
        self._cut_files(state.round, state.files)
        return state.round

    def _require_fits(self, path: Path, state: RunState) -> None:
        arm, where = self.arm, path / STATE
        for key, saved, own in (
            ("method.name", state.method, arm.method.name),
            ("seed", state.seed, arm.config.seed),
            ("trained copies", state.trained, list(arm.method.trained)),
        ):
            if saved != own:
                raise UserError(f"{where}: {key} was {saved!r} and is {own!r} now")
        for name, now in self._made_of().items():
            if state.made_of.get(name) != now:
                raise UserError(
                    f"{where}: {name} is not what the run began with; put the old one there, or "
                    "start a new run"
                )
        if state.round > arm.config.rounds:
            raise UserError(
                f"rounds: {arm.config.rounds} is less than the {state.round} that {path} has; give "
                f"--rounds {state.round} or more"
            )

    def _cut_files(self, number: int, sizes: dict[str, int]) -> None:
        """Remove what was written after round `number`, so that no round is there twice."""
        for name, size in sizes.items():
            path = self.arm.folder / name
            if path.is_file():
                if path.stat().st_size < size:
                    raise UserError(f"{path}: has lost lines since the checkpoint; restore it")
                os.truncate(path, size)
            elif size:
                raise UserError(f"{path}: is missing; restore it from a copy")
        for name in BY_ROUND:
            for path in (self.arm.folder / name).glob("round_*.msgpack"):
                if int(path.stem.removeprefix("round_")) > number:
                    path.unlink()

    # Writing -----------------------------------------------------------------------------------

    def round_done(self, number: int) -> None:
        """After a round: take down its state, and write a checkpoint if it is time for one."""
        if self.arm.ledger is not None:
            self.arm.ledger.fetch()  # its file is then complete up to here
        if not self.settings.every:
            if self.best is not None:
                self.best.keep_only(set())
            return
        self._unwritten, self._ahead = self._state(number), self.arm.ahead
        if number % self.settings.every == 0 or number == self.arm.config.rounds:
            self.write()

    def training_begins(self) -> None:
        """From now on the copies are no longer those of the last round."""
        self._unwritten = None

    def write(self) -> None:
        """Write the last round's checkpoint, if it has none and nothing was trained since.

        Raises:
            RunStoppedError: the disk would not take it.
        """
        state = self._unwritten
        if state is None:
            return
        with self.arm.phase("checkpoint"):
            self._write(state)
        self._unwritten = None
        numbers = checkpoint.rounds(self.root)
        for number in checkpoint.superseded(
            numbers, keep=self.settings.keep, best=self._best_of(numbers)
        ):
            checkpoint.remove(self.root, number)
        if self.best is not None:
            left = checkpoint.rounds(self.root)
            states = [read_state(checkpoint.folder(self.root, number)) for number in left]
            self.best.keep_only({state.best.round for state in states if state.best is not None})

    def _write(self, state: RunState) -> None:
        try:
            checkpoint.write(self.root, state.round, lambda folder: self._fill(folder, state))
        except OSError as error:
            # Of an error in a training process Ray keeps the message, as its cause.
            reason = getattr(error, "cause", error).strerror
            numbers = checkpoint.rounds(self.root)
            left = f"that of round {numbers[-1]} is whole" if numbers else "there is none yet"
            raise RunStoppedError(
                f"{self.root}: the checkpoint of round {state.round} cannot be written: "
                f"{reason}; {left}. Make room and go on with quartet train --resume "
                f"{self.arm.folder}"
            ) from None

    def _fill(self, folder: Path, state: RunState) -> None:
        session, arm = self.session, self.arm
        (folder / "engine").mkdir()
        save_policy(session, arm, folder / "policy")
        for role in arm.method.trained:
            with at_work(session, arm, role):
                session.trainer(role).ask("save_state", str(folder / "engine"), limit="save")
        if "reference" in arm.method.refreshed and arm.method.refresh_rate < 1:
            self._save_reference(folder / "reference")
        if self._ahead is not None:
            save_ahead(self._ahead, folder)
        (folder / STATE).write_text(state.model_dump_json() + "\n", encoding="utf-8")
        for path in (arm.folder / name for name in GROWING):
            if path.is_file():
                checkpoint.sync(path)

    def _state(self, number: int) -> RunState:
        arm = self.arm
        best = None
        if self.best is not None and self.best.value is not None:
            assert arm.result.best_round is not None
            best = BestState(round=arm.result.best_round, value=self.best.value)
        return RunState(
            round=number,
            method=arm.method.name,
            seed=arm.config.seed,
            trained=list(arm.method.trained),
            ranks=arm.config.train.num_ranks,
            rng=state_of(self.rng),
            random=random_state(),
            method_state=arm.method.state(),
            policy_version=arm.version if self.online else None,
            best=best,
            result=arm.result.model_copy(deep=True),
            spans=list(arm.clock.spans),
            files={name: _size(arm.folder / name) for name in GROWING},
            log=self.session.console.log_size(),
            made_of=self._made_of(),
        )

    def _made_of(self) -> dict[str, str]:
        arm = self.arm
        parts = {"the model": arm.model_dir, "the critic's model": arm.critic_dir}
        parts |= {f"the judge's model {i}": path for i, path in enumerate(arm.judge_dirs)}
        if arm.config.data.path is not None:
            parts["data.path"] = arm.config.data.path
        return {name: fingerprint(path) for name, path in parts.items()}

    def _best_of(self, numbers: list[int]) -> int | None:
        """Of these rounds the best by `checkpoint.keep_best`; the earlier of equal ones."""
        if (metric := self.settings.keep_best) is None:
            return None
        values = {
            point.round: value
            for point in self.arm.result.curve
            if point.round in numbers and (value := getattr(point, metric)) is not None
        }
        sign = 1 if metric == "score" or HIGHER_IS_BETTER[metric] else -1
        return max(values, key=lambda number: sign * values[number], default=None)

    # A reference that is a moving average -------------------------------------------------------

    def _save_reference(self, folder: Path) -> None:
        size = self.arm.config.train.bucket_mib * 2**20
        with at_work(self.session, self.arm, "reference"):
            buckets = self.session.ask("reference", "weight_buckets", size, limit="sync")
        folder.mkdir()
        write_tensors(dict(p for bucket in buckets for p in open_bucket(bucket)), folder / WEIGHTS)

    def _set_reference(self, file: Path) -> None:
        from safetensors.torch import load_file

        size = self.arm.config.train.bucket_mib * 2**20
        buckets = ray.put(make_buckets(load_file(file).items(), size))
        with at_work(self.session, self.arm, "reference"):
            self.session.ask("reference", "refresh", buckets, limit="sync")
        self.session.served("reference").recipe.weights = lambda: Call("refresh", (buckets,))


def set_result(result: MethodResult, saved: MethodResult) -> None:
    """In place: the run's comparison and its prompts hold the result, or its counts."""
    for name in set(MethodResult.model_fields) - {"dropped"}:
        setattr(result, name, getattr(saved, name))
    result.dropped.clear()
    result.dropped.update(saved.dropped)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
