"""From a method's settings to the method: the one place that lists them."""

from __future__ import annotations

from trainers.config import DPOConfig, MethodConfig, NSFTConfig, PPOConfig, SFTConfig
from trainers.dpo import DPO
from trainers.method import Method
from trainers.nsft import NSFT
from trainers.ppo import PPO
from trainers.sft import SFT


def make_method(config: MethodConfig) -> Method:
    """The method that these settings belong to."""
    match config:
        case PPOConfig():
            return PPO(config)
        case DPOConfig():
            return DPO(config)
        case NSFTConfig():
            return NSFT(config)
        case SFTConfig():
            return SFT(config)
