"""Settings of preference pairs that are made."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.config import Settings
from trainers.data.errors import UserError
from trainers.data.records import Source


class NegativesConfig(Settings):
    """Preference pairs that are made: which answers are preferred, and what makes the others.

    Off unless `rejected` names something; then a judge's scores have no part in what is a pair.
    """

    rejected: tuple[Source, ...] = ()
    """`policy`: its plain answers; `noisy`: its answers to distorted images; `injected`: the data's
    answer with errors put in; `segment`: the data's answer with a piece sampled anew; `data`: the
    data's own rejected answer."""
    chosen: Literal["policy", "data", "judge"] = "policy"
    """The policy's answers to the clean image, the data's answer, or the policy's best."""
    noise_steps: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = (500,)
    """Of the diffusion schedule; each makes answers of its own. POVID 500, SeVa 500 or 800, BPO
    900."""
    injector: str | None = None
    """Folder of a text model that puts the errors in; null: the drawn world's exact rules."""
    segment_tokens: int = Field(default=256, ge=1)
    """Longest piece that is sampled anew."""
    segment_temperature: float = Field(default=0.7, gt=0, le=2)
    segment_top_p: float = Field(default=0.95, gt=0, le=1)
    segment_top_k: int = Field(default=50, ge=0)
    segment_writer: Literal["policy", "reference"] = "policy"
    """Whose weights sample it; SAPO's is the reference, a moving average of the policy."""
    critiques: bool = False
    """Ask the judge about the rejected answers, too: nSFT corrects what it finds wrong there."""

    @property
    def needs_judge(self) -> bool:
        """Whether a judge reads answers at all."""
        return not self.rejected or self.critiques or self.chosen == "judge"

    @property
    def needs_annotation(self) -> bool:
        """Whether the data's own answers are needed."""
        return bool(self.rejected) and (
            self.chosen == "data" or bool({"injected", "segment"} & {*self.rejected})
        )

    @property
    def needs_policy(self) -> bool:
        """Whether the policy answers the clean image."""
        return self.chosen != "data" or "policy" in self.rejected

    @model_validator(mode="after")
    def _makes_pairs(self) -> Self:
        if "policy" in self.rejected and self.chosen == "policy":
            raise UserError(
                "negatives: policy answers on both sides need a judge; leave negatives.rejected "
                "empty, or set negatives.chosen=data"
            )
        if "noisy" in self.rejected and not self.noise_steps:
            raise UserError("negatives.noise_steps: give a step for negatives.rejected=[noisy]")
        return self
