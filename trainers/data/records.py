"""Records: what flows between actors and to disk. Nothing here imports torch.

    Sample --rollout--> Rollout --judge--> ScoredRollout --+--> (PPO trains on it directly)
                                                           +--> PreferencePair   DPO, SFT
                                                           +--> Correction       nSFT

Every record is a frozen, slotted, keyword-only dataclass of plain Python values, so that it can be
written as msgpack (`trainers.data.record_file`), sent over Ray, compared and printed. Images are
content hashes that the image store resolves (`trainers.data.images`), never pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

LATER: dict[str, bool] = {"later": True}
"""Metadata of a field that joined its record after files of this schema version were written. Such
a field may be missing from a record on disk and then has its default."""

BY_SOURCE = "source"
"""The name in place of a judge's where a response's source decides which of two is better."""

Verdict = Literal["ok", "bad", "missing", "absent"]
"""Of a claim: said and right, said and wrong, true but not said, rightly said not to be there."""
Source = Literal["policy", "noisy", "data", "injected", "segment"]
"""Of a response: sampled from the policy, sampled under a distorted image, the data's own answer,
that answer with errors put in by rules or a model, that answer with a piece sampled anew."""
FindingKind = Literal["existence", "attribute", "count", "relation", "text", "scene"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    num_images: int = 0
    """How many of the sample's images stand at the start of this turn, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer that came with the data set, and what its annotators said of it.

    Example: `Candidate(text="A cat.", label="gt", score=1.0, critique="names the animal")`
    """

    text: str
    label: str = ""
    """Where the answer comes from in the data set's words: `chosen`, `llm-hal`, a model's name."""
    score: float | None = None
    """Higher is better; on the data set's own scale."""
    critique: str | None = None
    aspects: dict[str, float] = field(default_factory=dict)
    """Scores of its parts, such as `Helpfulness`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt about images, and whatever the data set knows about the right answer.

    Example: `Sample(id="scene-7", prompt=(Turn(role="user", text="Describe the image.",
    num_images=1),), images=("a1b2...",), kind="describe", truth={"objects": [...]})`
    """

    id: str
    prompt: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    """Content hashes, resolved by the run's image store."""
    kind: str = ""
    """Free label for breakdowns; the drawn world uses `describe`, `question`, `exists`."""
    truth: dict[str, Any] | None = None
    """Ground truth for evaluation and judges; never shown to the policy."""
    chosen: str | None = None
    rejected: str | None = None
    candidates: tuple[Candidate, ...] = field(default=(), metadata=LATER)
    """All answers that the data set brings with a judgement, `chosen` and `rejected` among them."""
    is_tie: bool = field(default=False, metadata=LATER)
    """The annotators found `chosen` and `rejected` equally good."""
    margin: float | None = field(default=None, metadata=LATER)
    """How much better `chosen` is, on the data set's own scale (MM-RLHF's `ls_factor`)."""
    provenance: dict[str, Any] = field(default_factory=dict, metadata=LATER)
    """What else the data set says of the row: origin, stored reference logprobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response. `token_ids` and `logprobs` have equal length, EOS included."""

    id: str
    sample_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log of the sampling distribution (after temperature and bans), one per token; empty
    where no policy sampled the whole response (`source`)."""
    policy_version: int
    """Of the weights it was sampled from: 1 those that the run starts with, 2 those after its first
    round; 0 any other than the policy's."""
    seed: int
    """Of the engine call that sampled this; a call's rollouts differ by chance alone."""
    temperature: float
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    """Prompt length after image expansion, as the engine counted it."""
    source: Source = field(default="policy", metadata=LATER)
    token_ends: tuple[int, ...] = field(default=(), metadata=LATER)
    """Characters of `text` that are there after each token; empty where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One statement of a critique about one claim."""

    claim: str
    """The words judged (or, for `missing`, the words that should have been there)."""
    verdict: Verdict
    kind: FindingKind = "existence"
    correction: str | None = None
    """What would have been right, where the critique says so."""
    span: tuple[int, int] | None = field(default=None, metadata=LATER)
    """Where in the response the claim stands: characters from start up to, not including, end."""
    severity: float = field(default=1.0, metadata=LATER)
    """How much a bad claim counts; used where findings become numbers (PPO's `dense_coef`)."""

    def __post_init__(self) -> None:
        if self.span is not None and not (len(self.span) == 2 and 0 <= self.span[0] < self.span[1]):
            raise ValueError(f"finding {self.claim!r}: span {self.span!r} is not start < end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """What a judge wrote of a response, and the findings read from it."""

    text: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its judgement: exactly one of `score` and `failure` is set."""

    rollout: Rollout
    judge: str
    score: float | None = None
    failure: str | None = None
    """Why there is no score; such a rollout is dropped and counted, never trained on as 0."""
    critique: Critique | None = None
    components: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.score is None) == (self.failure is None):
            raise ValueError(
                f"rollout {self.rollout.id}: exactly one of score and failure must be set, "
                f"got score={self.score!r}, failure={self.failure!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one sample, the first judged better by `margin` > 0."""

    sample_id: str
    chosen: ScoredRollout
    rejected: ScoredRollout
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Question-and-answer turns built from what a critique found wrong (nSFT)."""

    sample_id: str
    rollout_id: str
    """The rejected rollout that the turns correct: provenance."""
    turns: tuple[Turn, ...]
    """Alternating user and assistant; the first user turn carries the images."""
    writer: str = field(default="template", metadata=LATER)
    """What wrote the turns: `template`, `short_answer` or `llm`."""


Record = Sample | Rollout | ScoredRollout | PreferencePair | Correction
