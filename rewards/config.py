"""Settings of the judges, one class each; a composed judge holds the settings of its parts.

`model: null` means the built-in model named in the class; `resolved` fills it in when the run knows
where that is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from trainers.config import Settings
from trainers.data.errors import UserError

POLICY = "policy"
"""In place of a labeler's folder: the policy itself, with its current weights."""
DRAWN = "drawn"
"""In place of a splitter's or converter's folder: the exact rules of the built-in world."""
FindModel = Callable[[str], str]
"""From `judge` or `honest` to the built-in model's folder."""


class JudgeSettings(Settings):
    """Base of all judges' settings."""

    def resolved(self, _find: FindModel) -> Self:
        """The same settings with every built-in model's folder filled in."""
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """Model folders that have to exist."""
        return ()

    @property
    def reward_model(self) -> str | None:
        """Folder of the critique reward model that PPO's critic can start from."""
        return None

    @property
    def asks_policy(self) -> bool:
        """Whether judging asks the rollout engine."""
        return False


class CritiqueConfig(JudgeSettings):
    """The critique-based reward model: writes a critique, then scores (MM-RLHF)."""

    builtin: ClassVar[str] = "judge"
    name: Literal["critique"] = "critique"
    model: str | None = None
    """Folder of a critique reward model; without it the built-in one."""
    num_critiques: int = Field(default=1, ge=1)
    """The score is the mean over so many sampled critiques."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the critiques; 0 is greedy, and then one critique is all there is."""
    generator: Literal["vllm", "in_process"] = "vllm"
    """`in_process` writes critiques with the scoring copy itself: slower, and no second copy."""
    facts: bool = False
    """The prompt also holds what the data know of the image (Fact-RLHF), for a model that was
    trained so (`quartet reward train --facts true`)."""

    @model_validator(mode="after")
    def _critiques_differ(self) -> Self:
        if self.num_critiques > 1 and self.temperature == 0:
            raise UserError(
                f"judge.num_critiques={self.num_critiques} at judge.temperature=0 repeats one "
                "critique; set judge.temperature=0.7, or judge.num_critiques=1"
            )
        return self

    def resolved(self, find: FindModel) -> Self:
        """See the base class."""
        return self.model_copy(update={"model": self.model or find(self.builtin)})

    @property
    def folders(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.model,) if self.model else ()

    @property
    def reward_model(self) -> str | None:
        """See the base class."""
        return self.model


class ClaimsConfig(JudgeSettings):
    """Divide and conquer (RLAIF-V): minus the number of claims that a labeler denies."""

    builtin: ClassVar[str] = "honest"
    name: Literal["claims"] = "claims"
    labeler: str | None = None
    """Folder of the VLM that is asked, or `policy`; without it the built-in honest model."""
    splitter: str = DRAWN
    """Folder of the model that lists an answer's claims, or `drawn`: exact rules."""
    converter: str = DRAWN
    """Folder of the model that turns a claim into a question, or `drawn`."""
    max_claim_tokens: int = Field(default=256, ge=16)
    """Longest list of claims, where a model writes it."""

    @model_validator(mode="after")
    def _rules_go_together(self) -> Self:
        if (self.splitter == DRAWN) != (self.converter == DRAWN):
            raise UserError(
                "judge.splitter and judge.converter: the rules `drawn` go together; give a model "
                "folder for both, or for neither"
            )
        return self

    def resolved(self, find: FindModel) -> Self:
        """See the base class."""
        return self.model_copy(update={"labeler": self.labeler or find(self.builtin)})

    @property
    def folders(self) -> tuple[str, ...]:
        """See the base class."""
        given = (self.labeler, self.splitter, self.converter)
        return tuple(folder for folder in given if folder not in (None, POLICY, DRAWN))

    @property
    def asks_policy(self) -> bool:
        """See the base class."""
        return self.labeler == POLICY


class EndpointConfig(Settings):
    """A server that speaks OpenAI's chat completions protocol."""

    url: str = Field(pattern=r"^https?://")
    """Up to and including `/v1`."""
    model: str
    """As the server calls it."""
    token_variable: str | None = None
    """Name of the environment variable that holds the access token; never the token itself."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    retries: int = Field(default=3, ge=0)
    """Further attempts after a timeout, a refused connection, status 429 or 5xx."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Before the first retry; doubled for each further one."""
    concurrency: int = Field(default=4, ge=1)
    """Requests at a time."""
    max_requests: int = Field(default=10_000, ge=1)
    """Attempts of the whole run; above it items fail and the run stops."""
    max_total_tokens: int | None = Field(default=None, ge=1)
    """Of the whole run, as the server counts them."""


class RubricConfig(JudgeSettings):
    """A prompted VLM that rates by a rubric."""

    name: Literal["rubric"] = "rubric"
    model: str | None = None
    """Folder of the judging VLM, or:"""
    endpoint: EndpointConfig | None = None
    rubric: str = "helpfulness"
    """A file of `rewards/rubrics` by name, or a path to one's own. One with `{first}` and
    `{second}` compares the answers to one prompt with each other, in both orders."""
    max_tokens: int = Field(default=256, ge=4)
    """Longest verdict."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise UserError("judge: a rubric needs judge.model or judge.endpoint, one of the two")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """See the base class."""
        return (self.model,) if self.model else ()


class RulesConfig(JudgeSettings):
    """Right answers from the data's truth, length and missing EOS; no model."""

    name: Literal["rules"] = "rules"
    answers: Literal["correct", "fact_rlhf", "off"] = "correct"
    """`correct`: 1 or 0; `fact_rlhf`: its bonus, which never rewards a yes (see
    `rewards.right_answers`)."""
    unanswerable: Literal["fail", "skip"] = "fail"
    """What becomes of a prompt whose truth has no short answer: a failure, or no such part."""
    answer_weight: float = Field(default=1.0, ge=0)
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken off for an answer of `max_tokens` tokens, less for shorter ones in proportion."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken off when the length limit cut the answer."""


class FunctionConfig(JudgeSettings):
    """A user's Python function."""

    name: Literal["function"] = "function"
    function: str
    """`module:function`."""


class RandomConfig(JudgeSettings):
    """Control: scores drawn by chance."""

    name: Literal["random"] = "random"


class LongestConfig(JudgeSettings):
    """Control: the number of words is the score."""

    name: Literal["longest"] = "longest"


class FlippedConfig(JudgeSettings):
    """Control: another judge, its order reversed on a share of the prompts."""

    name: Literal["flipped"] = "flipped"
    judge: JudgeConfig
    share: float = Field(default=0.5, ge=0, le=1)

    def resolved(self, find: FindModel) -> Self:
        """See the base class."""
        return self.model_copy(update={"judge": self.judge.resolved(find)})

    @property
    def folders(self) -> tuple[str, ...]:
        """See the base class."""
        return self.judge.folders

    @property
    def reward_model(self) -> str | None:
        """See the base class."""
        return self.judge.reward_model

    @property
    def asks_policy(self) -> bool:
        """See the base class."""
        return self.judge.asks_policy


class Part(Settings):
    """One judge of a sum."""

    weight: float = 1.0
    judge: JudgeConfig


class SumConfig(JudgeSettings):
    """A weighted sum of judges."""

    name: Literal["sum"] = "sum"
    parts: tuple[Part, ...] = Field(min_length=1)

    def resolved(self, find: FindModel) -> Self:
        """See the base class."""
        parts = tuple(
            part.model_copy(update={"judge": part.judge.resolved(find)}) for part in self.parts
        )
        return self.model_copy(update={"parts": parts})

    @property
    def folders(self) -> tuple[str, ...]:
        """See the base class."""
        return tuple(folder for part in self.parts for folder in part.judge.folders)

    @property
    def reward_model(self) -> str | None:
        """See the base class."""
        found = (part.judge.reward_model for part in self.parts)
        return next((folder for folder in found if folder), None)

    @property
    def asks_policy(self) -> bool:
        """See the base class."""
        return any(part.judge.asks_policy for part in self.parts)


def from_reference(value: Any) -> Any:
    """Settings of a judge that is given as one string; anything else as it is.

    `random`, `module:function`, or else the folder of a critique reward model.
    """
    if not isinstance(value, str):
        return value
    if value == "random":
        return {"name": "random"}
    if ":" in value and not Path(value).exists():
        return {"name": "function", "function": value}
    return {"name": "critique", "model": value}


AnyJudge = (
    CritiqueConfig
    | ClaimsConfig
    | RubricConfig
    | RulesConfig
    | FunctionConfig
    | RandomConfig
    | LongestConfig
    | FlippedConfig
    | SumConfig
)
JudgeConfig = Annotated[AnyJudge, Field(discriminator="name"), BeforeValidator(from_reference)]
"""A judge's settings: a mapping with its `name`, or a reference as one string."""

JUDGES: dict[str, type[JudgeSettings]] = {
    cls.model_fields["name"].default: cls for cls in get_args(AnyJudge)
}
"""Settings classes by the judge's name."""

for _model in (FlippedConfig, Part, SumConfig):
    _model.model_rebuild()


class JudgeCheckConfig(Settings):
    """Known good against known bad answers, before the first round."""

    min_accuracy: float = Field(default=0.7, ge=0, le=1)
    """Least share of pairs that the judge orders rightly; below it the run stops. 0: no check."""
    num_pairs: int = Field(default=96, ge=1)
