"""From a method's settings to the method: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainers.config import (
    DPOConfig,
    GRPOConfig,
    MethodConfig,
    NSFTConfig,
    OptimisationConfig,
    POVIDConfig,
    PPOConfig,
    RejectionConfig,
    RewardWeightedConfig,
    RPOConfig,
    SAPOConfig,
    SELMConfig,
    SFTConfig,
    SimPOConfig,
    SteerLMConfig,
)
from trainers.dpo import DPO
from trainers.grpo import GRPO
from trainers.method import Method
from trainers.nsft import NSFT
from trainers.povid import POVID
from trainers.ppo import PPO
from trainers.rejection import Rejection
from trainers.reward_weighted import RewardWeighted
from trainers.rpo import RPO
from trainers.sapo import SAPO
from trainers.selm import SELM
from trainers.sft import SFT
from trainers.simpo import SimPO
from trainers.steerlm import SteerLM

_METHODS: dict[type[OptimisationConfig], Callable[[Any], Method]] = {
    PPOConfig: PPO,
    GRPOConfig: GRPO,
    DPOConfig: DPO,
    SimPOConfig: SimPO,
    RPOConfig: RPO,
    SELMConfig: SELM,
    NSFTConfig: NSFT,
    SFTConfig: SFT,
    RejectionConfig: Rejection,
    RewardWeightedConfig: RewardWeighted,
    SteerLMConfig: SteerLM,
    POVIDConfig: POVID,
    SAPOConfig: SAPO,
}


def make_method(config: MethodConfig) -> Method:
    """The method that these settings belong to."""
    return _METHODS[type(config)](config)
