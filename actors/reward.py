"""The critique-based reward model as a judge: write a critique with vLLM, then score it.

MM-RLHF (arXiv 2502.10391): (1) the model reads image, question and response and writes a critique,
greedily; (2) one forward over prompt and critique reads the score head at the last token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.engine import Engine, EngineSpec, Request
from actors.ledger import PhaseMeter, Reading
from actors.memory import module_bytes
from actors.modules import HEAD_FILE, REWARD_FILE, RewardModule, load_reward_module
from actors.parking import Parking
from rewards.base import Judge, JudgeItem, Judgement
from rewards.critique import parse_critique
from trainers.batch import Batch, Row, collate, encode_row
from trainers.data.errors import UserError
from trainers.data.records import Critique, Sample, Turn


def evaluator_turns(request: str, sample: Sample, response: str) -> tuple[Turn, ...]:
    """The conversation that asks for a critique: the prompt, the response, then `request`."""
    return (
        *sample.prompt,
        Turn(role="assistant", text=response),
        Turn(role="user", text=request),
    )


def load_reward_settings(folder: str | Path) -> dict[str, Any]:
    """`reward.json` of a critique model's folder.

    Raises:
        UserError: the folder is not a critique reward model.
    """
    for name in (REWARD_FILE, HEAD_FILE):
        if not (Path(folder) / name).is_file():
            raise UserError(
                f"{folder}: no {name}, so this is not a critique reward model; give one that "
                "quartet trained, or a function as module:function"
            )
    settings: dict[str, Any] = json.loads((Path(folder) / REWARD_FILE).read_text())
    return settings


class CritiqueJudge:
    """Holds the reward model twice: in vLLM (writes critiques) and as a module (scores them)."""

    def __init__(self, spec: EngineSpec, *, batch_size: int = 128):
        self.name = "critique"
        self.settings = load_reward_settings(spec.model_dir)
        self.engine = Engine(spec)
        self.processing = self.engine.processing
        self.batch_size = batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = load_reward_module(spec.model_dir, torch.bfloat16 if spec.bf16 else torch.float32)
        self.module: RewardModule = module.eval().requires_grad_(False).to(self.device)
        self.meter = PhaseMeter()
        self._parking = Parking()

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """Critique and score every item. Equal (image, prompt, response) are judged once: the
        critique is greedy, so a second pass would give the same.
        """
        keys = [(item.sample.images, item.sample.prompt, item.rollout.text) for item in items]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        unique = [items[index] for index in first.values()]
        judged = dict(zip(first, self._judge_unique(unique), strict=True))
        return [judged[key] for key in keys]

    def _judge_unique(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        prompts = [self._turns(item) for item in items]
        answers = self.engine.generate(
            [
                Request(turns, item.sample.images)
                for turns, item in zip(prompts, items, strict=True)
            ],
            temperature=0.0,
            max_tokens=int(self.settings["max_critique_tokens"]),
        )
        results: list[Judgement | None] = []
        rows: list[Row] = []
        for item, turns, answer in zip(items, prompts, answers, strict=True):
            if isinstance(answer, str):
                results.append(Judgement(failure=f"critique: {answer}"))
                continue
            results.append(None)
            rows.append(
                Row(
                    id=item.rollout.id,
                    prompt=turns,
                    images=item.sample.images,
                    response_ids=answer[0].token_ids,
                )
            )
        texts = [
            (item.rollout.text, answer[0].text)
            for item, answer in zip(items, answers, strict=True)
            if not isinstance(answer, str)
        ]
        judged = iter(zip(self.score(rows), texts, strict=True))
        return [result or self._judgement(*next(judged)) for result in results]

    def _turns(self, item: JudgeItem) -> tuple[Turn, ...]:
        return evaluator_turns(str(self.settings["request"]), item.sample, item.rollout.text)

    def _judgement(self, score: float, texts: tuple[str, str]) -> Judgement:
        response, text = texts
        try:
            findings = parse_critique(text, response)
        except ValueError:
            # The score stands; a critique that does not parse gives nSFT nothing to correct, which
            # it counts.
            return Judgement(
                score=score, critique=Critique(text=text), components={"unparsed": 1.0}
            )
        return Judgement(
            score=score,
            critique=Critique(text=text, findings=findings),
            components={"unparsed": 0.0},
        )

    @torch.no_grad()
    def score(self, rows: Sequence[Row]) -> list[float]:
        """Scores of evaluator prompts with their critiques; one forward each."""
        encoded = [encode_row(row, self.processing) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: len(encoded[index].input_ids))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = collate(
                [rows[i] for i in chosen], [encoded[i] for i in chosen], self.processing
            )
            batch = batch.to(self.device)
            with self._track(batch):
                outputs = self.module(batch)
            for index, value in zip(chosen, outputs.scores_B.tolist(), strict=True):
                scores[index] = value
        return scores

    def _track(self, batch: Batch) -> AbstractContextManager[Any]:
        def held() -> dict[str, list[Tensor]]:
            return {"weights": self._tensors(), "activations": list(batch.tensors())}

        size = batch.input_ids_BT.numel()
        return self.meter.track("judge", "reward", size, held, self.processing.vocab_size)

    def park(self) -> int:
        """Move the scoring module to host memory until `wake`. Returns the bytes moved."""
        return self._parking.park(self._tensors())

    def wake(self) -> int:
        """Bring it back to the device, if it is parked. Returns the bytes moved."""
        return self._parking.wake()

    def _tensors(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def end_phase(self, phase: str) -> Reading:
        """Both models' memory in the phase that ends now, for the ledger."""
        memory, module = self.engine.memory, {"reward": self.memory()}
        parked = self._parking.parked
        return self.meter.read(
            phase,
            {**({} if parked else module), "judge_engine": memory.on_device()},
            {**(module if parked else {}), "judge_engine": memory.in_host()},
            unmapped={"judge_engine": memory.unmapped()},
        )

    def sleep(self) -> int:
        """Send the engine off the device until `wake_up`. Returns the bytes moved."""
        self.meter.note("judge_engine", self.engine.memory.on_device())
        return self.engine.sleep()

    def memory(self) -> dict[str, int]:
        """Bytes of the scoring module: the copy `reward`."""
        return {"weights": self._parking.num_bytes or module_bytes(self.module)}


class JudgeActor:
    """Hosts a judge; `load` takes a function that makes it, so that heavy judges load in place."""

    def __init__(self, *, num_threads: int | None = None):
        if num_threads:
            torch.set_num_threads(num_threads)
        self._judge: Judge | None = None
        self._meter = PhaseMeter()

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import vllm  # noqa: F401

    def load(self, make: Callable[[], Judge]) -> str:
        """Make and keep the judge, in place of an earlier one; returns its name."""
        if isinstance(self._judge, CritiqueJudge):
            self._judge.engine.close()
        self._judge = None
        self._judge = make()
        return self._judge.name

    def name(self) -> str:
        """The judge's name, as it stands in the records."""
        assert self._judge is not None, "call load first"
        return self._judge.name

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item, in order."""
        assert self._judge is not None, "call load first"
        return self._judge.judge(items)

    def call(self, method: str, *args: Any) -> Any:
        """A method of the hosted judge beyond the protocol (memory, score)."""
        return getattr(self._judge, method)(*args)

    def end_phase(self, phase: str) -> Reading:
        """This process's memory in the phase that ends now, for the ledger."""
        if isinstance(self._judge, CritiqueJudge):
            return self._judge.end_phase(phase)
        return self._meter.read(phase, {})

    def park(self) -> int:
        """Move the judge's scoring module, if it has one, to host memory until `wake`."""
        return self._judge.park() if isinstance(self._judge, CritiqueJudge) else 0

    def wake(self) -> int:
        """Bring it back to the device. Returns the bytes moved."""
        return self._judge.wake() if isinstance(self._judge, CritiqueJudge) else 0

    def sleep(self) -> int:
        """Send the judge's engine, if it has one, off the device. Returns the bytes moved."""
        return self._judge.sleep() if isinstance(self._judge, CritiqueJudge) else 0

    def wake_up(self) -> int:
        """Bring the engine back. Returns the bytes moved."""
        return self._judge.engine.wake_up() if isinstance(self._judge, CritiqueJudge) else 0

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes by copy; empty for judges without a model."""
        if not isinstance(self._judge, CritiqueJudge):
            return {}
        return {
            "reward": self._judge.memory(),
            "judge_engine": self._judge.engine.memory.everywhere(),
        }
