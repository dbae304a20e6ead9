"""The critique-based reward model as a judge: write a critique with vLLM, then score it.

MM-RLHF (arXiv 2502.10391): (1) the model reads image, question and response and writes a critique,
greedily; (2) one forward over prompt and critique reads the score head at the last token. With
several sampled critiques the score is their mean (the paper: no better than one).
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
from actors.giving_back import GivesBack, give_back_dead
from actors.in_process import InProcessWriter, Writer
from actors.judge_models import JUDGING, ModelJudge
from actors.ledger import PhaseMeter, Reading
from actors.memory import module_bytes
from actors.modules import HEAD_FILE, REWARD_FILE, RewardModule, load_reward_module
from actors.parking import Parking
from actors.process_settings import settle
from actors.progress import note
from rewards.base import Judge, JudgeItem, Judgement
from rewards.critique import parse_critique
from rewards.facts import NO_FACTS, has_facts, request_with_facts
from rewards.spans import with_spans
from trainers.batch import Batch, Row, collate, encode_row
from trainers.data.errors import UserError
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.data.records import Critique, Sample, Turn


def evaluator_turns(
    request: str, sample: Sample, response: str, *, facts: bool = False
) -> tuple[Turn, ...]:
    """The conversation that asks for a critique: the prompt, the response, then `request`; with
    `facts` what is known of the image before it.
    """
    request = request_with_facts(request, sample) if facts else request
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


class CritiqueJudge(ModelJudge):
    """Holds the reward model twice: in vLLM (writes critiques) and as a module (scores them). With
    `in_process` the module does both.

    Args:
        batch_size: rows of a forward that scores.
        num_critiques: the score is the mean over so many, sampled at `temperature`.
        seed: of the sampled critiques.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        batch_size: int = 16,
        num_critiques: int = 1,
        temperature: float = 0.0,
        in_process: bool = False,
        facts: bool = False,
        seed: int = 0,
    ):
        self.name = "critique"
        self.facts = facts
        self.settings = load_reward_settings(spec.model_dir)
        self.engines = [] if in_process else [Engine(spec)]
        self.processing = (
            Processing(spec.model_dir, ImageStore(spec.image_root))
            if in_process
            else self.engines[0].processing
        )
        self.batch_size = batch_size
        self.num_critiques, self.temperature, self.seed = num_critiques, temperature, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = load_reward_module(spec.model_dir, torch.bfloat16 if spec.bf16 else torch.float32)
        self.module: RewardModule = module.eval().requires_grad_(False).to(self.device)
        self.writer: Writer = (
            InProcessWriter(self.module.vlm, self.processing, spec.max_model_len)
            if in_process
            else self.engines[0]
        )
        self.meter = PhaseMeter()
        self._parking = Parking()

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """Critique and score every item. Equal (image, prompt, response) are judged once: the
        critique is greedy, so a second pass would give the same (sampled ones are shared). Where
        facts are wanted, an item without them fails.
        """
        if not self.facts:
            return self._judge_known(items)
        known = [has_facts(item.sample) for item in items]
        there = [item for item, is_known in zip(items, known, strict=True) if is_known]
        judged = iter(self._judge_known(there))
        return [next(judged) if is_known else Judgement(failure=NO_FACTS) for is_known in known]

    def _judge_known(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        keys = [(self._turns(item), item.sample.images) for item in items]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        unique = [items[index] for index in first.values()]
        judged = dict(zip(first, self._judge_unique(unique), strict=True))
        return [judged[key] for key in keys]

    def _judge_unique(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        prompts = [self._turns(item) for item in items]
        answers = self.writer.generate(
            [
                Request(turns, item.sample.images, self.num_critiques)
                for turns, item in zip(prompts, items, strict=True)
            ],
            temperature=self.temperature,
            max_tokens=int(self.settings["max_critique_tokens"]),
            seed=self.seed,
        )
        results: list[Judgement | None] = []
        rows: list[Row] = []
        for item, turns, answer in zip(items, prompts, answers, strict=True):
            if isinstance(answer, str):
                results.append(Judgement(failure=f"critique: {answer}"))
                continue
            results.append(None)
            rows += [
                Row(
                    id=item.rollout.id,
                    prompt=turns,
                    images=item.sample.images,
                    response_ids=critique.token_ids,
                )
                for critique in answer
            ]
        texts = [
            (item.rollout.text, answer[0].text)
            for item, answer in zip(items, answers, strict=True)
            if not isinstance(answer, str)
        ]
        number = self.num_critiques
        scores = self.score(rows)
        means = [sum(scores[i : i + number]) / number for i in range(0, len(scores), number)]
        judged = iter(zip(means, texts, strict=True))
        return [result or self._judgement(*next(judged)) for result in results]

    def _turns(self, item: JudgeItem) -> tuple[Turn, ...]:
        request = str(self.settings["request"])
        return evaluator_turns(request, item.sample, item.rollout.text, facts=self.facts)

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
            critique=with_spans(Critique(text=text, findings=findings), response),
            components={"unparsed": 0.0},
        )

    @torch.no_grad()
    def score(self, rows: Sequence[Row]) -> list[float]:
        """Scores of evaluator prompts with their critiques; one forward each."""
        encoded = [encode_row(row, self.processing) for row in rows]
        # The longest first, as in `actors.scoring`: one that does not fit is the first.
        order = sorted(range(len(rows)), key=lambda index: -len(encoded[index].input_ids))
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
        return self.meter.track(JUDGING, "reward", size, held, self.processing.vocab_size)

    def park(self) -> int:
        """Move the scoring module to host memory until `wake`. Returns the bytes moved."""
        return self._parking.park(self._tensors())

    def wake(self) -> int:
        """Bring it back to the device, if it is parked. Returns the bytes moved."""
        return self._parking.wake()

    @property
    def parked(self) -> bool:
        """Whether the scoring module is in host memory."""
        return self._parking.parked

    def _tensors(self) -> list[Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def module_memory(self) -> dict[str, int]:
        """Bytes of the scoring module: the copy `reward`."""
        return {"weights": self._parking.num_bytes or module_bytes(self.module)}


class JudgeActor(GivesBack):
    """Hosts a judge; `load` takes a function that makes it, so that heavy judges load in place."""

    def __init__(self, *, num_threads: int | None = None):
        settle(num_threads)
        self._judge: Judge | None = None
        self._key = ""
        self._meter = PhaseMeter()

    def warm_up(self) -> None:
        """Do the slow imports now."""
        import vllm  # noqa: F401

    def load(self, make: Callable[[], Judge], key: str = "") -> str:
        """Make and keep the judge, in place of an earlier one; returns its name."""
        if isinstance(self._judge, ModelJudge):
            self._judge.close()
        self._judge = None
        self._key = ""
        give_back_dead()
        self._judge = make()
        self._key = key
        note(f"load: made judge {self._judge.name}")
        return self._judge.name

    def key(self) -> str:
        """What `load` was told that it loads."""
        return self._key

    def name(self) -> str:
        """The judge's name, as it stands in the records."""
        assert self._judge is not None, "call load first"
        return self._judge.name

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """One judgement per item, in order."""
        assert self._judge is not None, "call load first"
        note(f"judge: received {len(items)} answers")
        judgements = self._judge.judge(items)
        note(f"judge: judged {len(items)} answers")
        return judgements

    def call(self, method: str, *args: Any) -> Any:
        """A method of the hosted judge beyond the protocol (memory, score)."""
        return getattr(self._judge, method)(*args)

    def end_phase(self, phase: str) -> Reading:
        """This process's memory in the phase that ends now, for the ledger."""
        if isinstance(self._judge, ModelJudge):
            return self._judge.end_phase(phase)
        return self._meter.read(phase, {})

    def park(self) -> int:
        """Move the judge's scoring module, if it has one, to host memory until `wake`."""
        return self._judge.park() if isinstance(self._judge, ModelJudge) else 0

    def wake(self) -> int:
        """Bring it back to the device. Returns the bytes moved."""
        return self._judge.wake() if isinstance(self._judge, ModelJudge) else 0

    def forget_requests(self) -> None:
        """Empty the caches of the judge's engine, if it has one."""
        if isinstance(self._judge, ModelJudge):
            self._judge.forget_requests()

    def sleep(self) -> int:
        """Send the judge's engine, if it has one, off the device. Returns the bytes moved."""
        return self._judge.sleep() if isinstance(self._judge, ModelJudge) else 0

    def wake_up(self) -> int:
        """Bring the engine back. Returns the bytes moved."""
        return self._judge.wake_up() if isinstance(self._judge, ModelJudge) else 0

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes by copy; empty for judges without a model."""
        return self._judge.memory() if isinstance(self._judge, ModelJudge) else {}
