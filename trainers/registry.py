"""From a method's settings to the method: the one place that lists them."""

from __future__ import annotations

from trainers.config import (
    DPOConfig,
    GRPOConfig,
    MethodConfig,
    NSFTConfig,
    PPOConfig,
    RejectionConfig,
    RewardWeightedConfig,
    RPOConfig,
    SELMConfig,
    SFTConfig,
    SimPOConfig,
    SteerLMConfig,
)
from trainers.dpo import DPO
from trainers.grpo import GRPO
from trainers.method import Method
from trainers.nsft import NSFT
from trainers.ppo import PPO
from trainers.rejection import Rejection
from trainers.reward_weighted import RewardWeighted
from trainers.rpo import RPO
from trainers.selm import SELM
from trainers.sft import SFT
from trainers.simpo import SimPO
from trainers.steerlm import SteerLM


def make_method(config: MethodConfig) -> Method:
    """The method that these settings belong to."""
    match config:
        case PPOConfig():
            return PPO(config)
        case GRPOConfig():
            return GRPO(config)
        case DPOConfig():
            return DPO(config)
        case SimPOConfig():
            return SimPO(config)
        case RPOConfig():
            return RPO(config)
        case SELMConfig():
            return SELM(config)
        case NSFTConfig():
            return NSFT(config)
        case SFTConfig():
            return SFT(config)
        case RejectionConfig():
            return Rejection(config)
        case RewardWeightedConfig():
            return RewardWeighted(config)
        case SteerLMConfig():
            return SteerLM(config)
