"""The configuration of a run: one YAML under 100 lines, dotted overrides, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from actors.transports import TransportSetting
from cluster.arms import DEFAULT_ARMS, expand_arms
from cluster.checkpoint_config import CheckpointConfig
from cluster.config_text import explain, merge
from cluster.deadlines import DeadlinesConfig
from cluster.lora_config import check_adapters
from cluster.micro_batch_config import MicroBatchConfig
from cluster.negatives_config import NegativesConfig
from cluster.overlap_config import OverlapConfig, require_overlap_fits
from cluster.placement_config import PlacementConfig, agree
from cluster.transport_config import check_transport
from rewards.config import JudgeCheckConfig, JudgeConfig
from trainers.config import (
    METHODS,
    MethodConfig,
    Settings,
    SFTConfig,
)
from trainers.data.errors import UserError
from trainers.data.formats.names import FormatName
from trainers.roles import CriticMode, ReferenceMode

NAME = r"^[\w.+-]*$"
"""Of a run: part of a folder's name."""


class RolloutConfig(Settings):
    """What the policy answers in one round."""

    num_prompts: int = Field(default=96, ge=1)
    """Prompts per round."""
    num_rollouts_per_prompt: int = Field(default=4, ge=1)
    num_engines: int = Field(default=1, ge=1)
    """Rollout engines; each answers its part of the prompts."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one engine, all on one node."""
    seeds: Literal["call", "answer"] = "call"
    """`answer`: chance is drawn for each answer by itself, so that the same answers come whatever
    the number of engines; slower."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """At most 2, as vLLM allows."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest response."""
    max_model_len: int = Field(default=384, ge=16)
    """Prompt, images expanded, and response together; longer prompts are dropped and counted."""
    kv_cache_mib: int = Field(default=128, ge=1)
    """Size of the KV cache on a machine without a GPU."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, lt=1)
    sleep: bool = False
    """Engines, the judge's too, leave the device while they do not work: weights to host memory,
    KV cache dropped. On a GPU this is vLLM's sleep mode, level 1. On a CPU it is done to tensors:
    weights that vLLM has packed for oneDNN stay."""


class TrainConfig(MicroBatchConfig):
    """How every trained copy is held and stepped."""

    zero_stage: int = Field(default=0, ge=0, le=3)
    num_ranks: int = Field(default=1, ge=1)
    """DeepSpeed ranks per trained copy."""
    logprob_chunk: int = Field(default=512, ge=1)
    """Target tokens whose logits exist at once; does not change the result."""
    gradient_clip: float = Field(default=1.0, gt=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    bf16: bool = False
    gradient_checkpointing: bool = False
    freeze: tuple[Literal["vision", "projector", "language"], ...] = ()
    """Parts of policy and critic that are not trained."""
    liger: bool = False
    """Liger's fused kernels inside the layers; needs a GPU and the package `liger-kernel`."""
    lora_rank: int = Field(default=0, ge=0)
    """Above 0, adapters of this rank are trained on every linear layer of the language model, and
    the rest is frozen; 0 trains all weights."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Adapters count alpha / rank; by default alpha is twice the rank."""
    lora_vision: bool = False
    """Adapters on the vision tower and the projector, too."""
    lora_sync: Literal["merged", "adapter"] = "merged"
    """`adapter`: after the first sync only adapters go to the rollout engine, which serves them
    beside the base; `merged`: weights with the adapters added."""
    reference: ReferenceMode = "own_copy"
    """`on_host`: a copy that is in host memory while it does not work; `adapter_off`: the policy
    without its adapters is the reference; `cached`: its values are taken before training, and no
    copy stays for it."""
    critic: CriticMode = "own_copy"
    """`shared_base`: PPO's critic is adapters and a head on the policy's frozen base, in its
    processes. It starts from the policy then, not from the reward model."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where DeepSpeed keeps optimiser states and masters: on the device, in host memory or in files
    under `nvme_path`. Needs ZeRO."""
    nvme_path: str | None = None
    time_slice: bool = False
    """One copy on the device at a time, the others in host memory: the peak of one copy, paid for
    in time."""
    transport: TransportSetting = "auto"
    """How weights get to the rollout engine; what cannot work here is refused, `auto` chooses and
    says why: docs/placement.md. What fails under `auto` is given up, and the run goes on without
    it."""
    bucket_mib: int = Field(default=256, ge=1)
    """Largest message of a weight sync."""
    checksum_every: int = Field(default=4, ge=1)
    """Every so many rounds the buckets of a sync carry checksums; the run's first sync does."""
    parity_tolerance: float = Field(default=1e-4, gt=0)
    """Largest mean |rollout logprob - trainer logprob| after a sync; above it the run stops."""
    parity_rollouts: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        if self.offload_optimizer == "none":
            return self
        if self.zero_stage == 0:
            raise UserError(
                "train.offload_optimizer needs ZeRO, which owns the optimiser; set "
                "train.zero_stage=2"
            )
        if self.time_slice:
            raise UserError(
                "train.time_slice moves optimiser states with their copy; leave "
                "train.offload_optimizer=none"
            )
        if self.offload_optimizer == "nvme":
            if self.zero_stage != 3:
                raise UserError("train.offload_optimizer=nvme needs train.zero_stage=3")
            if self.nvme_path is None or not Path(self.nvme_path).is_dir():
                raise UserError(
                    f"train.nvme_path={self.nvme_path}: no such folder; give one on the disk that "
                    "optimiser states are to be kept on"
                )
            if find_library("aio") is None:
                raise UserError(
                    "train.offload_optimizer=nvme needs libaio on every node, headers too (Debian: "
                    "apt install libaio-dev); train.offload_optimizer=cpu does without"
                )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.freeze and self.lora_rank:
            raise UserError(
                "train.freeze: adapters freeze all weights; train.lora_vision says where adapters "
                "are. Leave one of the two out"
            )
        if len(set(self.freeze)) == 3:
            raise UserError("train.freeze: with all three parts frozen, nothing is left to train")
        if self.liger and find_spec("liger_kernel") is None:
            raise UserError(
                "train.liger needs the package liger-kernel (for GPUs): pip install liger-kernel, "
                "or leave train.liger=false"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        check_adapters(self)
        check_transport(self)
        return self


class DataConfig(Settings):
    """Prompts from a file; without a path the built-in drawn world."""

    path: str | None = None
    """JSONL, a JSON array, parquet, or records that Quartet wrote (.msgpack)."""
    format: FormatName = "auto"
    """Layout of the rows; `auto` tells it from the columns, and says so."""
    image_root: str | None = None
    """Folder that image paths are relative to; the data file's own folder by default."""
    allow_urls: bool = False
    """Images that are http(s) URLs are fetched, from public addresses only, into the run's images;
    otherwise such rows are refused."""
    max_dropped_share: float = Field(default=0.05, ge=0, lt=1)
    """More bad rows or samples than this stop the run."""


class EvalConfig(Settings):
    """Held-out evaluation against ground truth; never by the judge."""

    num_scenes: int = Field(default=500, ge=1)
    """Held-out scenes for the figures before and after."""
    num_curve_scenes: int = Field(default=128, ge=0)
    """Held-out scenes after every round (for the curves); 0 turns it off."""
    keep_best: Literal["chair_i", "chair_s", "recall"] | None = None
    """Keep the model of the round that is best by this metric, and evaluate that; by default it is
    the last one. Rounds are compared on `num_curve_scenes` of their own."""

    @model_validator(mode="after")
    def _rounds_are_evaluated(self) -> Self:
        if self.keep_best is not None and not self.num_curve_scenes:
            raise UserError(
                f"eval.keep_best={self.keep_best} needs an evaluation after every round; set "
                "eval.num_curve_scenes above 0"
            )
        return self


def require_base_reference(train: TrainConfig, key: str, method: MethodConfig) -> None:
    """Refuse `adapter_off` for a method whose reference moves: without its adapters the policy is
    the model that the run started from, not the previous round's policy.
    """
    if train.reference != "adapter_off":
        return
    from trainers.registry import make_method  # loads torch, which most checks do without

    if "reference" in make_method(method).refreshed:
        raise UserError(
            f"train.reference=adapter_off does not fit {key}: its reference becomes each round's "
            "policy and does not stay the base; set train.reference=cached, which needs no copy"
        )


class RunConfig(Settings):
    """One run of one method."""

    name: str = Field(default="", pattern=NAME)
    """Start of the folder's name under `output`, the time follows; the method by default."""
    output: str = "runs"
    seed: int = 0
    rounds: int = Field(default=6, ge=1)
    model: str | None = None
    """Hugging Face VLM folder; without it the built-in base model."""
    judge: JudgeConfig | None = None
    """A mapping with the judge's `name` and settings (docs/judges.md), or one string: the folder of
    a critique reward model, `module:function`, or `random`. Without it the built-in critique
    model."""
    judge_check: JudgeCheckConfig = JudgeCheckConfig()
    method: Annotated[MethodConfig, Field(discriminator="name")]
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    placement: PlacementConfig = PlacementConfig()
    overlap: OverlapConfig = OverlapConfig()
    negatives: NegativesConfig = NegativesConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads per actor; by default as many as there are cores."""

    @model_validator(mode="before")
    @classmethod
    def _placement_agrees(cls, values: Any) -> Any:
        return agree(values)

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        require_base_reference(self.train, f"method.name={self.method.name}", self.method)
        return self

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        require_overlap_fits(
            self.overlap, self.rollout, self.train, self.negatives, self.judge, self.method
        )
        return self

    @model_validator(mode="after")
    def _data_fit(self) -> Self:
        if self.eval.keep_best is not None and self.data.path is not None:
            raise UserError(
                f"eval.keep_best={self.eval.keep_best} needs held-out images with ground truth, "
                "which only the built-in task has; leave it out, or data.path"
            )
        own_answers = isinstance(self.method, SFTConfig) and self.method.target == "data"
        if own_answers and self.data.path is None:
            raise UserError(
                "method.target=data needs data.path, a file with a column chosen; the built-in "
                "task has prompts only"
            )
        return self

    @model_validator(mode="after")
    def _average_is_resident(self) -> Self:
        needed = ""
        if (rate := getattr(self.method, "ema_rate", 1.0)) < 1:
            needed = f"method.ema_rate={rate:g}"
        elif self.negatives.segment_writer == "reference":
            needed = "negatives.segment_writer=reference"
            from trainers.registry import make_method  # loads torch, as above

            roles = [copy.role for copy in make_method(self.method).copies]
            if "reference" not in roles:
                raise UserError(
                    f"{needed}: method.name={self.method.name} has no reference; set it to policy"
                )
        if needed and self.train.reference not in ("own_copy", "on_host"):
            raise UserError(
                f"{needed} needs the reference's own weights; set train.reference=own_copy"
            )
        return self

    @model_validator(mode="after")
    def _state_can_be_saved(self) -> Self:
        if self.train.offload_optimizer == "nvme" and self.checkpoint.every:
            raise UserError(
                "train.offload_optimizer=nvme: optimiser states on a disk are not read back into "
                "checkpoints; set checkpoint.every=0"
            )
        return self

    @model_validator(mode="after")
    def _negatives_fit(self) -> Self:
        if not self.negatives.rejected:
            return self
        pairs = getattr(self.method, "pairs", None)
        if pairs is None:
            raise UserError(
                f"negatives.rejected makes pairs, but method.name={self.method.name} trains on "
                "scores; leave it empty, or take a method with method.pairs"
            )
        if pairs.margin > 1:
            raise UserError(
                f"method.pairs.margin={pairs.margin:g}: chosen and rejected of negatives are 1 "
                "apart; set it to 1 or less"
            )
        return self


class ArmConfig(Settings):
    """One arm of a comparison: its method, and any other settings of a run that are its own."""

    model_config = ConfigDict(extra="allow")  # checked as the settings of a run

    method: Annotated[MethodConfig, Field(discriminator="name")]


class CompareConfig(Settings):
    """Several arms on the built-in task, with equal prompts, rollouts and judge calls."""

    name: str = Field(default="", pattern=NAME)
    output: str = "runs"
    seed: int = 0
    quick: bool = False
    """Marks a run whose numbers are too small to conclude from; set by `--quick`."""
    rounds: int = Field(default=6, ge=1)
    arms: dict[str, ArmConfig] = Field(
        default=DEFAULT_ARMS,
        validate_default=True,
        min_length=1,
    )
    """Name -> what the arm has of its own; a list of names of `cluster.arms.CATALOGUE` will do."""
    judge_check: JudgeCheckConfig = JudgeCheckConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    placement: PlacementConfig = PlacementConfig()
    overlap: OverlapConfig = OverlapConfig()
    eval: EvalConfig = EvalConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    num_threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _placement_agrees(cls, values: Any) -> Any:
        return agree(values)

    @model_validator(mode="before")
    @classmethod
    def _arms_have_their_own_settings(cls, values: Any) -> Any:
        for key in METHODS if isinstance(values, Mapping) else ():
            if key in values:
                old = ".".join((key, *list(values[key] or ())[:1])) if values[key] else key
                new = old.replace(key, f"arms.{key}.method", 1)
                raise UserError(f"unknown key {old!r}; settings belong to an arm: {new}")
        return values

    @field_validator("arms", mode="before")
    @classmethod
    def _arms_are_known(cls, value: Any) -> dict[str, ArmConfig]:
        arms = {}
        for name, own in expand_arms(value).items():
            try:
                arms[name] = ArmConfig.model_validate(own)
            except ValidationError as error:
                raise UserError(explain(error, ArmConfig, own, f"arms.{name}.")) from None
        return arms

    @model_validator(mode="after")
    def _arms_can_run(self) -> Self:
        same = ("train.num_ranks", "rollout.num_engines", "rollout.tensor_parallel")
        for name in self.arms:
            arm = self.arm(name)
            for key in same:
                group, field = key.split(".")
                if getattr(getattr(arm, group), field) != getattr(getattr(self, group), field):
                    raise UserError(
                        f"arms.{name}.{key}: all arms run in the same processes; set {key}"
                    )
        return self

    def shared(self) -> dict[str, Any]:
        """The settings of a run that all arms have."""
        return self.model_dump(include=set(RunConfig.model_fields) - {"name"})

    def arm(self, name: str) -> RunConfig:
        """The single-method configuration that an arm runs with."""
        values = {**merge(self.shared(), self.arms[name].model_dump()), "name": name}
        try:
            return RunConfig.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, RunConfig, values, f"arms.{name}.")) from None


QUICK: dict[str, Any] = {
    "quick": True,
    "rounds": 2,
    "rollout": {"num_prompts": 48},
    "eval": {"num_scenes": 150, "num_curve_scenes": 64},
    "judge_check": {"min_accuracy": 0.55},
}
"""What `compare --quick` changes; the built-in models are trained for fewer steps too, so that the
judge is only asked to be better than chance."""
